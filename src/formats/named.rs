//! Values by name that keep their order: the entries of an object, the columns of a file.
//!
//! Finding a name takes the same time however many there are.

use std::collections::HashMap;

/// Up to so many are compared one by one.
const FEW: usize = 16;

/// Values by name, in the order in which they came.
#[derive(Clone, Debug)]
pub(super) struct Named<T> {
    entries: Vec<(String, T)>,
    /// Where each name is, once there are more than [`FEW`].
    index: HashMap<String, usize>,
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), index: HashMap::new() }
    }
}

impl<T: PartialEq> PartialEq for Named<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl<T> Named<T> {
    /// Where a name is; `near` is where to look first.
    pub fn position(&self, name: &str, near: usize) -> Option<usize> {
        let is_it = |at: usize| self.entries.get(at).is_some_and(|(own, _)| own == name);
        if is_it(near) {
            return Some(near);
        }
        match self.entries.len() <= FEW {
            true => self.entries.iter().position(|(own, _)| own == name),
            false => self.index.get(name).copied(),
        }
    }

    /// The value of a name; `near` is where to look first.
    pub fn get(&self, name: &str, near: usize) -> Option<&T> {
        self.position(name, near).map(|at| &self.entries[at].1)
    }

    /// Puts a value behind the others, under a name that none of them has.
    pub fn push(&mut self, name: String, value: T) {
        if self.entries.len() == FEW {
            self.index = self.entries.iter().enumerate().map(|(at, (own, _))| (own.clone(), at)).collect();
        }
        if self.entries.len() >= FEW {
            self.index.insert(name.clone(), self.entries.len());
        }
        self.entries.push((name, value));
    }

    /// The value of a name, which is put behind the others where none has it; `near` is where to look first.
    pub fn entry(&mut self, name: &str, near: usize, value: impl FnOnce() -> T) -> &mut T {
        let at = self.position(name, near).unwrap_or_else(|| {
            self.push(name.to_owned(), value());
            self.entries.len() - 1
        });
        &mut self.entries[at].1
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(String, T)> {
        self.entries.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_are() {
        let mut named = Named::default();
        for n in 0..100 {
            assert_eq!(named.position(&n.to_string(), n), None);
            *named.entry(&n.to_string(), n, || 0) += n;
            *named.entry(&n.to_string(), 0, || 0) += n;
        }
        for n in 0..100 {
            assert_eq!(
                (named.position(&n.to_string(), 7), named.get(&n.to_string(), n)),
                (Some(n), Some(&(2 * n)))
            );
        }
        assert_eq!(named.iter().len(), 100);
    }
}
