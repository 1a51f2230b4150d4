//! Keys and values of tokens that went through the model before.
//!
//! Knows where the prefix's and each row's keys are; does not know how attention uses them.

use super::layout::{Layout, Slot};

/// The keys and values of every layer: the prefix once, and each row.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// The keys and values of one layer: for each token its row of the key/value matrix as it is.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    prefix: Vec<f32>,
    rows: Vec<Vec<f32>>,
}

impl KvCache {
    /// An empty cache for a model of so many layers and a batch of so many rows.
    pub fn new(layers: usize, rows: usize) -> Self {
        Self { layers: vec![LayerCache { prefix: Vec::new(), rows: vec![Vec::new(); rows] }; layers] }
    }

    /// Forgets the rows and keeps the prefix: the next batch has so many rows.
    pub fn restart(&mut self, rows: usize) {
        for layer in &mut self.layers {
            layer.rows = vec![Vec::new(); rows];
        }
    }

    /// The cache of a layer, counted from 0.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

impl LayerCache {
    /// Keys and values of a slot, `[tokens, width]`; empty for a row the cache has not met, and for branches.
    pub fn of(&self, slot: Slot) -> &[f32] {
        match slot {
            Slot::Prefix => &self.prefix,
            Slot::Row(i) => self.rows.get(i).map_or(&[], Vec::as_slice),
            Slot::Branch { .. } => &[],
        }
    }

    /// Adds the keys and values of a packed batch, `[tokens, width]`, but for its branches.
    pub fn extend(&mut self, layout: &Layout, kv: &[f32], width: usize) {
        for segment in layout.segments() {
            let into = match segment.slot {
                Slot::Prefix => &mut self.prefix,
                Slot::Row(i) => {
                    if self.rows.len() <= i {
                        self.rows.resize_with(i + 1, Vec::new);
                    }
                    &mut self.rows[i]
                }
                Slot::Branch { .. } => continue,
            };
            into.extend_from_slice(&kv[segment.tokens.start * width..segment.tokens.end * width]);
        }
    }
}
