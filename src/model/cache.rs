//! Keys and values of tokens that went through the model before.
//!
//! Knows where the prefix's and each row's keys are; does not know how attention uses them.

use super::layout::{Layout, Slot};

/// The keys and values of every layer: the prefix once, and each row.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

/// The keys and values of one layer; a token takes one row `[key heads | value heads]`.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    pub(super) prefix: Vec<f32>,
    pub(super) rows: Vec<Vec<f32>>,
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
    pub(super) fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }
}

impl LayerCache {
    /// Adds the keys and values of a packed batch; `copy(token, into)` appends those of one token.
    pub(super) fn extend(&mut self, layout: &Layout, mut copy: impl FnMut(usize, &mut Vec<f32>)) {
        for segment in layout.segments() {
            let into = match segment.slot {
                Slot::Prefix => &mut self.prefix,
                Slot::Row(i) => {
                    if self.rows.len() <= i {
                        self.rows.resize_with(i + 1, Vec::new);
                    }
                    &mut self.rows[i]
                }
            };
            segment.queries.clone().for_each(|token| copy(token, into));
        }
    }
}
