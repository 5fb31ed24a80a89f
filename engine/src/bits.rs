//! A set of small numbers.

/// A bit for each of the numbers below a limit.
#[derive(Debug)]
pub(crate) struct Bits(Box<[u64]>);

impl Bits {
    /// None of `len` numbers.
    pub fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)].into())
    }

    /// Puts a number in; says whether it was not there, and is below the limit.
    #[inline]
    pub fn insert(&mut self, number: usize) -> bool {
        let Some(word) = self.0.get_mut(number / 64) else { return false };
        let bit = 1 << (number % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes a number out.
    #[inline]
    pub fn remove(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// The first number from `from` on.
    #[inline]
    pub fn next(&self, from: usize) -> Option<usize> {
        let (first, rest) = self.0.get(from / 64..)?.split_first()?;
        let first = first & u64::MAX << (from % 64);
        let words = std::iter::once(&first).chain(rest).enumerate();
        let found = words.map(|(n, word)| (n, *word)).find(|(_, word)| *word != 0);
        found.map(|(n, word)| (from / 64 + n) * 64 + word.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;

    #[test]
    fn numbers_are_found_in_order() {
        let mut bits = Bits::new(257);
        assert!(bits.next(0).is_none());
        for number in [0, 63, 64, 200, 256] {
            assert!(bits.insert(number) && !bits.insert(number));
        }
        bits.remove(200);
        let all: Vec<_> = std::iter::successors(bits.next(0), |number| bits.next(number + 1)).collect();
        assert_eq!(all, [0, 63, 64, 256]);
        assert!(bits.next(1000).is_none() && !bits.insert(1000));
    }
}
