//! In which order rows are visited, epoch by epoch: torch's own orders for the same seed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random::Mt19937;

/// Whose order is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shuffle {
    /// A `DataLoader` with its own generator, seeded once.
    #[default]
    Dataloader,
    /// transformers' `Trainer`: epoch k is the permutation of a generator seeded `seed + k`.
    Trainer,
    /// `torch.randperm` with one generator, seeded once: a permutation an epoch.
    Randperm,
}

/// Gives each epoch's rows in turn.
pub struct Order {
    rows: usize,
    kind: Kind,
}

enum Kind {
    File,
    Dataloader(Mt19937),
    Trainer { seed: u64 },
    Randperm(Mt19937),
}

impl Order {
    /// The order in which the rows lie in the file, every epoch.
    pub fn file(rows: usize) -> Self {
        Self { rows, kind: Kind::File }
    }

    /// A shuffled order.
    pub fn shuffled(shuffle: Shuffle, seed: u64, rows: usize) -> Self {
        let kind = match shuffle {
            Shuffle::Dataloader => Kind::Dataloader(Mt19937::new(seed)),
            Shuffle::Trainer => Kind::Trainer { seed },
            Shuffle::Randperm => Kind::Randperm(Mt19937::new(seed)),
        };
        Self { rows, kind }
    }

    /// The rows of the next epoch.
    pub fn next_epoch(&mut self) -> Vec<usize> {
        match &mut self.kind {
            Kind::File => (0..self.rows).collect(),
            Kind::Dataloader(generator) => {
                // Two numbers make the base seed of its workers.
                generator.next_u32();
                generator.next_u32();
                let permutation = generator.permutation(self.rows);
                // Its `RandomSampler` draws another one at the end of an epoch, and takes nothing from it.
                generator.permutation(self.rows);
                permutation
            }
            Kind::Trainer { seed } => {
                let permutation = Mt19937::new(*seed).permutation(self.rows);
                *seed = seed.wrapping_add(1);
                permutation
            }
            Kind::Randperm(generator) => generator.permutation(self.rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_order_never_changes() {
        let mut order = Order::file(3);
        assert_eq!(order.next_epoch(), [0, 1, 2]);
        assert_eq!(order.next_epoch(), [0, 1, 2]);
    }

    #[test]
    fn each_kind_follows_torch_over_two_epochs() {
        let two = |shuffle, seed| {
            let mut order = Order::shuffled(shuffle, seed, 8);
            [order.next_epoch(), order.next_epoch()]
        };
        assert_eq!(two(Shuffle::Dataloader, 0), DATALOADER);
        assert_eq!(two(Shuffle::Trainer, 42), TRAINER);
        assert_eq!(two(Shuffle::Randperm, 7), RANDPERM);
    }

    /// list(DataLoader(range(8), batch_size=8, shuffle=True, generator=Generator().manual_seed(0))), twice
    const DATALOADER: [[usize; 8]; 2] = [[5, 3, 1, 7, 2, 6, 4, 0], [2, 3, 4, 7, 1, 0, 6, 5]];
    /// torch.randperm(8, generator=Generator().manual_seed(42 + k))
    const TRAINER: [[usize; 8]; 2] = [[6, 3, 0, 7, 2, 1, 4, 5], [4, 5, 7, 1, 3, 2, 6, 0]];
    /// g = Generator().manual_seed(7); torch.randperm(8, generator=g), twice
    const RANDPERM: [[usize; 8]; 2] = [[7, 0, 3, 4, 1, 5, 2, 6], [7, 4, 0, 6, 2, 1, 5, 3]];
}
