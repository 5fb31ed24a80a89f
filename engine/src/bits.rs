//! A set of small numbers.

/// A bit for each of the numbers below a limit.
#[derive(Debug)]
pub(crate) struct Bits(Box<[u64]>);

impl Bits {
    /// None of `len` numbers.
    pub fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)].into())
    }

    /// Puts a number in, or takes it out.
    #[inline]
    pub fn set(&mut self, number: usize, to: bool) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word = *word & !(1 << (number % 64)) | u64::from(to) << (number % 64);
        }
    }

    /// Whether there is any.
    #[inline]
    pub fn any(&self) -> bool {
        self.0.iter().any(|word| *word != 0)
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
        assert!(!bits.any() && bits.next(0).is_none());
        for number in [0, 63, 64, 200, 256] {
            bits.set(number, true);
        }
        bits.set(200, false);
        let all: Vec<_> = std::iter::successors(bits.next(0), |number| bits.next(number + 1)).collect();
        assert_eq!(all, [0, 63, 64, 256]);
        assert!(bits.any() && bits.next(1000).is_none());
    }
}
