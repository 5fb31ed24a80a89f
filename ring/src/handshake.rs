//! What an Enhanced Command Queue says above the indices of its PROD and CONS words (facts sheet, sections 4.1 to 4.3).

/// ECMDQ_PROD.EN and ECMDQ_CONS.ENACK.
pub const EN: u32 = 1 << 31;
/// ECMDQ_PROD.ERRACK and ECMDQ_CONS.ERR.
pub const ERR: u32 = 1 << 23;
/// The lowest bit of ECMDQ_CONS.ERR_REASON.
pub const REASON_SHIFT: u32 = 24;

/// What the producer asks for by a PROD word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing but commands.
    Nothing,
    /// EN was set: BASE and CONS are to be read, then [`Handshake::enable`] is to be called.
    Enable,
    /// EN was cleared.
    Disable,
    /// An error was acknowledged: the entry at CONS is to be fetched again.
    Resume,
}

/// EN against ENACK, ERRACK against ERR, from the consumer's side.
///
/// An error stops the queue until ERRACK equals ERR. A mismatch that software makes by itself stops nothing: the
/// architecture permits either, and there are drivers that drop ERRACK when they ring the doorbell, whose queue
/// would stop for ever. A later error leaves ERR as it is if it differs from ERRACK already, so that it is told at any rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    enabled: bool,
    stopped: bool,
    errack: bool,
    err: bool,
    reason: u8,
}

impl Handshake {
    /// Looks at a PROD word and follows it; the flags are to be published unless nothing is asked for.
    pub fn follow(&mut self, prod: u32) -> Step {
        self.errack = prod & ERR != 0;
        let enable = prod & EN != 0;
        if enable != self.enabled {
            self.enabled = false;
            return if enable { Step::Enable } else { Step::Disable };
        }
        if self.enabled && self.stopped && self.errack == self.err {
            self.stopped = false;
            return Step::Resume;
        }
        Step::Nothing
    }

    /// The queue was enabled with this CONS word: software may have written ERR while the queue was disabled.
    pub fn enable(&mut self, cons: u32) {
        self.enabled = true;
        self.err = cons & ERR != 0;
        self.stopped &= self.errack != self.err;
    }

    /// The entry at CONS cannot be executed. `reason` is a code of ERR_REASON.
    pub fn fail(&mut self, reason: u8) {
        self.err = !self.errack;
        self.reason = reason & 7;
        self.stopped = true;
    }

    /// Whether the queue is enabled.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether an error has not been acknowledged.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The bits of CONS above the index.
    pub fn flags(&self) -> u32 {
        let reason = u32::from(self.reason) << REASON_SHIFT;
        reason | if self.enabled { EN } else { 0 } | if self.err { ERR } else { 0 }
    }

    /// The handshake that showed these words, stopped by an error or not.
    pub fn restored(prod: u32, cons: u32, stopped: bool) -> Self {
        Self {
            enabled: cons & EN != 0,
            stopped,
            errack: prod & ERR != 0,
            err: cons & ERR != 0,
            reason: (cons >> REASON_SHIFT & 7) as u8,
        }
    }
}
