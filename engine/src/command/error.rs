//! Why a command queue stops.

use serde::{Deserialize, Serialize};

/// Why a queue stopped: a code of CMDQ_CONS.ERR and of ECMDQ_CONS.ERR_REASON (IHI 0070 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandError {
    /// CERROR_ILL: the command at CONS is not allowed.
    Ill = 1,
    /// CERROR_ABT: the entry at CONS could not be read.
    Abt = 2,
    /// CERROR_ATC_INV_SYNC: the CMD_SYNC at CONS could not complete an earlier ATC_INV.
    AtcInvSync = 3,
}
