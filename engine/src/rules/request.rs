//! Commands that the VMM must act upon, as typed requests.

use super::{Reason, Rules};
use crate::command::table::{self, Check};
use crate::command::{Command, Opcode};
use crate::identity::{StreamConfig, StreamId};
use crate::stream_table::StreamTable;

/// What a guest asks of the VMM, by a command or by a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// CR0.SMMUEN became 1: streams are translated by this table, all of which is to be read.
    Enable(StreamTable),
    /// CR0.SMMUEN became 0: streams bypass or abort, as GBPA says.
    Disable,
    /// GBPA was updated to this value.
    UpdateGbpa(u32),
    /// CFGI_STE, CFGI_STE_RANGE, CFGI_ALL: stream table entries have changed, and must be read again.
    Streams(StreamConfig),
    /// RESUME: a stalled transaction goes on or ends.
    Resume {
        /// The stream.
        stream: StreamId,
        /// Which transaction.
        stag: u16,
        /// What becomes of it.
        action: ResumeAction,
    },
    /// STALL_TERM: all stalled transactions of a stream end.
    StallTerm(StreamId),
    /// PRI_RESP: a page request group is answered.
    PageResponse(PageResponse),
    /// A command that needs features which only the VMM can emulate: EL2 and stage 2 TLBIs, CFGI_VMS_PIDM, DPTI_ALL.
    Other(Command),
}

/// What becomes of a stalled transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeAction {
    /// It is tried again.
    Retry,
    /// It ends as if it had read zero and written nothing.
    Terminate,
    /// It ends with an abort.
    Abort,
}

/// The answer to a page request group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// The stream.
    pub stream: StreamId,
    /// The substream, if there is one.
    pub substream: Option<u32>,
    /// Which group.
    pub group: u16,
    /// 0 is failure, 1 invalid request, 2 success.
    pub response: u8,
}

impl Rules {
    /// The request that a command is; its reserved bits have been checked.
    pub(super) fn request(&self, command: Command) -> Result<Request, Reason> {
        let check = table::find(command.opcode()).map_or(Check::Nothing, |spec| spec.check);
        let stream = StreamId(command.stream());
        Ok(match command.opcode() {
            Opcode::CFGI_STE => Request::Streams(StreamConfig::One(stream)),
            Opcode::CFGI_STE_RANGE => Request::Streams(streams(command)),
            Opcode::RESUME => Request::Resume {
                stream,
                stag: command.bits(1, 15, 0) as u16,
                action: match command.bits(0, 13, 12) {
                    0b00 => ResumeAction::Terminate,
                    0b10 => ResumeAction::Abort,
                    _ => ResumeAction::Retry,
                },
            },
            Opcode::STALL_TERM => Request::StallTerm(stream),
            Opcode::PRI_RESP => Request::PageResponse(self.page_response(command)?),
            _ if check == Check::Range => {
                self.range(command.0)?;
                Request::Other(command)
            }
            _ => Request::Other(command),
        })
    }

    fn page_response(&self, command: Command) -> Result<PageResponse, Reason> {
        let response = command.bits(1, 13, 12) as u8;
        if response == 0b11 {
            return Err(Reason::Field("Resp", 0b11));
        }
        let has_substream = command.bits(0, 11, 11) != 0 && self.ssid_bits > 0;
        Ok(PageResponse {
            stream: StreamId(command.stream()),
            substream: has_substream.then_some(command.bits(0, 31, 12) as u32),
            group: command.bits(1, 8, 0) as u16,
            response,
        })
    }
}

fn streams(command: Command) -> StreamConfig {
    match command.bits(1, 4, 0) as u32 {
        31 => StreamConfig::All,
        range => {
            let log2 = range + 1;
            StreamConfig::Range { first: StreamId(command.stream() & u32::MAX << log2), log2 }
        }
    }
}
