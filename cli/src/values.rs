//! Values of options that several jobs share.

use ecmdq_engine::{HostStreamId, StreamId};

/// A number, decimal or with 0x.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| e.to_string())
}

/// GUEST=HOST.
pub fn stream(text: &str) -> Result<(StreamId, HostStreamId), String> {
    let (guest, host) = text.split_once('=').ok_or("not GUEST=HOST")?;
    let id = |text| number(text).and_then(|n| u32::try_from(n).map_err(|e| e.to_string()));
    Ok((StreamId(id(guest)?), HostStreamId(id(host)?)))
}
