//! `ecmdq translate`: what the rules make of each command.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ecmdq_bench::trace::{self, TraceError};
use ecmdq_engine::BeyondHost;
use ecmdq_engine::rules::{End, MAX_EXPANSION, Quirk, Rules};
use ecmdq_engine::{Command, Features, HostStreamId, StreamId, StreamMap, StreamMapError, Vmid};
use serde::Serialize;
use thiserror::Error;

use crate::values;

/// Options of `ecmdq translate`.
#[derive(Args, Debug)]
pub struct Options {
    /// Raw 16-byte little-endian commands; - is the standard input.
    file: PathBuf,
    /// ID registers that the guest is shown, in place of the defaults: idr0=VALUE,idr1=VALUE,idr3=VALUE,idr5=VALUE.
    #[arg(long, value_name = "IDRs", value_parser = idrs)]
    guest: Option<Idrs>,
    /// ID registers of the host, in place of the guest's.
    #[arg(long, value_name = "IDRs", value_parser = idrs)]
    host: Option<Idrs>,
    /// The host's VMID of the guest.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vmid: u16,
    /// A stream that the guest owns, and the host's name for it; without any, each below 0x10000, under its own name.
    #[arg(long, value_name = "GUEST=HOST", value_parser = values::stream)]
    stream: Vec<(StreamId, HostStreamId)>,
    /// A deviation that the guest needs: one-page-range.
    #[arg(long, value_name = "NAME", value_parser = quirk)]
    quirk: Vec<Quirk>,
    /// Print the canonical bytes alone.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print an object a line. `canonical` is null, a command, or a list of commands for a range that was expanded.
    #[arg(long)]
    json: bool,
}

/// Why nothing is translated.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Input(#[from] TraceError),
    #[error("--stream: {0}")]
    Streams(#[from] StreamMapError),
    #[error("--host: {0}")]
    Rules(#[from] BeyondHost),
}

/// ID registers that were given; the others are as by default.
#[derive(Clone, Copy, Debug)]
struct Idrs([Option<u32>; 6]);

#[derive(Serialize)]
struct Line {
    index: usize,
    raw: [String; 2],
    name: String,
    verdict: &'static str,
    reason: Option<String>,
    canonical: Option<Canonical>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Canonical {
    One([String; 2]),
    Many(Vec<[String; 2]>),
}

/// Prints the verdict on each command. The exit status is 3 if any was rejected.
pub fn translate(options: &Options) -> Result<ExitCode, Error> {
    let guest = options.guest.map_or_else(Features::default, |idrs| idrs.features(Features::default()));
    let host = options.host.map_or(guest, |idrs| idrs.features(guest));
    let rules = Rules::new(&guest, &host, Vmid(options.vmid), &options.quirk)?;
    let streams = match &options.stream[..] {
        [] => StreamMap::from_pairs((0..0x1_0000).map(|s| (StreamId(s), HostStreamId(s))))?,
        given => StreamMap::from_pairs(given.iter().copied())?,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut rejected = false;
    for (index, command) in trace::read(&options.file)?.into_iter().enumerate() {
        let mut room = [Command::default(); MAX_EXPANSION];
        let applied = rules.apply(&streams, &[command], &mut room);
        let canonical = &room[..applied.host];
        let (verdict, reason) = match applied.end {
            End::Sync(_) => ("sync", None),
            End::Request(_) => ("vsmmu", None),
            End::Illegal(wrong) => ("CERROR_ILL", Some(wrong.reason.to_string())),
            End::Batch if applied.widened > 0 => {
                ("host", Some("the range is too long for a host without ranges".into()))
            }
            End::Batch if applied.host > 0 => ("host", None),
            End::Batch if applied.dropped > 0 => {
                ("none", Some("no such stream or substream, or no ATS".into()))
            }
            End::Batch => ("none", None),
        };
        rejected |= verdict == "CERROR_ILL";
        let written = if options.raw {
            canonical
                .iter()
                .flat_map(|command| command.0)
                .try_for_each(|word| out.write_all(&word.to_le_bytes()))
        } else if options.json {
            let line = Line {
                index,
                raw: hex(command),
                name: command.name(),
                verdict,
                reason,
                canonical: match canonical {
                    [] => None,
                    [one] => Some(Canonical::One(hex(*one))),
                    many => Some(Canonical::Many(many.iter().copied().map(hex).collect())),
                },
            };
            serde_json::to_writer(&mut out, &line).map_err(io::Error::from).and_then(|()| writeln!(out))
        } else {
            let text: Vec<String> = canonical.iter().map(|command| hex(*command).join(" ")).collect();
            let why = reason.map_or(String::new(), |reason| format!("  {reason}"));
            let line = format!("{index:>7}  {:<16}  {verdict:<10}{why}  {}", command.name(), text.join(", "));
            writeln!(out, "{}", line.trim_end())
        };
        // A closed pipe ends it like the end of the stream.
        if written.is_err() {
            break;
        }
    }
    Ok(if rejected { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

impl Idrs {
    fn features(self, default: Features) -> Features {
        let mut idrs = default.idrs();
        for (register, given) in idrs.iter_mut().zip(self.0) {
            *register = given.unwrap_or(*register);
        }
        Features::from_idrs(idrs)
    }
}

fn idrs(text: &str) -> Result<Idrs, String> {
    let mut idrs = [None; 6];
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is not idrN=VALUE"))?;
        let n = name.to_ascii_lowercase().strip_prefix("idr").and_then(|n| n.parse::<usize>().ok());
        let register =
            n.and_then(|n| idrs.get_mut(n)).ok_or_else(|| format!("'{name}' is not idr0 to idr5"))?;
        let value = u32::try_from(values::number(value)?).map_err(|e| e.to_string())?;
        *register = Some(value);
    }
    Ok(Idrs(idrs))
}

fn quirk(name: &str) -> Result<Quirk, String> {
    Quirk::named(name).ok_or_else(|| {
        let known: Vec<_> = Quirk::ALL.iter().map(|(_, name, _)| *name).collect();
        format!("known are: {}", known.join(", "))
    })
}

fn hex(command: Command) -> [String; 2] {
    command.0.map(|word| format!("{word:#018x}"))
}
