//! Errors told by toggling a bit, and acknowledged by making another word equal: GERROR and GERRORN (facts sheet, section
//! 2.4).

/// Both words. A bit is active while the two differ in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Toggle {
    raised: u32,
    acknowledged: u32,
}

impl Toggle {
    /// The pair with these values.
    pub fn new(raised: u32, acknowledged: u32) -> Self {
        Self { raised, acknowledged }
    }

    /// The word that the raising side publishes.
    pub fn raised(&self) -> u32 {
        self.raised
    }

    /// The word that the acknowledging side wrote, as last seen.
    pub fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    /// The active bits.
    pub fn active(&self) -> u32 {
        self.raised ^ self.acknowledged
    }

    /// Activates bits that are not active, and returns those: a repeated error is not recorded.
    pub fn raise(&mut self, bits: u32) -> u32 {
        let new = bits & !self.active();
        self.raised ^= new;
        new
    }

    /// Follows the acknowledging word; returns the bits that are no longer active.
    pub fn follow(&mut self, acknowledged: u32) -> u32 {
        let before = self.active();
        self.acknowledged = acknowledged;
        before & !self.active()
    }
}
