//! The figures as a page that needs nothing else.

use std::error::Error;
use std::fmt::Write;

use super::measure::TLBI;
use super::{Count, Figures, Goal, Merging, Plot, Rate, RoundTrip, Sharing, Spread, plots};

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#111}\
    table{border-collapse:collapse;margin:1em 0}th,td{padding:.2em .6em;text-align:right;white-space:nowrap;border-bottom:1px solid #ccc}\
    th:first-child,td:first-child{text-align:left;white-space:normal}figure{margin:1.5em 0}svg{max-width:100%;height:auto}\
    .no{font-weight:bold}caption,figcaption{text-align:left;color:#444}\
    @media print{body{max-width:none;font-size:11pt}figure,table{break-inside:avoid}}";

/// The page.
///
/// # Errors
///
/// What the plotting said.
pub fn html(figures: &Figures) -> Result<String, Box<dyn Error>> {
    let Figures { machine, quick, steady, goals, rates, round_trips, merging, .. } = figures;
    let Figures { sharing, beside_idle, memory, instructions, .. } = figures;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<title>ecmdq: measured beside its peers</title>\n\
         <style>{STYLE}</style>\n<h1>ecmdq: measured beside its peers and the limit</h1>\n<p>{}{}</p>\n\
         <p>Two threads, each on a processor of its own: one writes commands as a guest does, the other serves and executes them. \
         The limit copies 16 bytes for each command through the same rings and replaces the VMID, without a check. Everything is \
         measured in turn, again and again, in several passes; ratios are taken in each repetition. A value is the median of the \
         passes, with their quartiles behind it. A measurement in which the machine took more than 1 % of a processor's time for something else is made again: \
         so were {} beside {} that count, {} of which were disturbed still.</p>\n",
        escaped(&machine.sentence()),
        if *quick { " A quick run: few cases, few repetitions." } else { "" },
        steady.again,
        steady.measured,
        steady.disturbed,
    );
    page += &table("Ratios", &["", "goal", "measured", "", "the limit", ""], goals.iter().map(goal));
    for Plot { caption, svg, .. } in plots(figures)? {
        writeln!(page, "<figure>{svg}<figcaption>{caption}</figcaption></figure>")?;
    }
    let trips = round_trips.iter().map(trip);
    let head = ["round trip, ns", "each", "p50", "p99", "p99.9", "p50 : one word", "p99 : one word"];
    page += &table("TLBI and CMD_SYNC", &head, trips);
    let head = ["guests", "guest CMD_SYNCs for each of the host", ""];
    page += &table("CMD_SYNCs of many guests", &head, merging.iter().map(merged));
    let head = [
        "vCPUs",
        "queues",
        "host CMD_SYNC, us",
        "million commands/s",
        "",
        "million CMD_SYNCs/s",
        "of the limit",
        "guest CMD_SYNCs for each of the host",
        "",
    ];
    page +=
        &table("vCPUs that share one CMDQ, and vCPUs with an ECMDQ each", &head, sharing.iter().map(shared));
    let row =
        |ratio| [vec!["one queue beside 256 idle guests : alone".into()], spread(ratio).to_vec()].concat();
    page += &table("Idle guests", &["", "commands a second", ""], beside_idle.iter().map(row));
    let memory = [("a guest with an ECMDQ", memory.guest), ("each further ECMDQ", memory.queue)];
    let rows = memory.map(|(what, bytes)| vec![what.into(), format!("{bytes}")]);
    page += &table("Memory, without the guest's RAM", &["", "bytes"], rows.into_iter());
    if let Some(instructions) = instructions {
        let head = ["step (commands, or stream)", "instructions", "a command"];
        let caption = format!("Instructions ({})", instructions.compiler);
        page += &table(&caption, &head, instructions.steps.iter().map(step));
    }
    let head = ["", "queues", "a doorbell", "million/s", "", "of the limit", "", "engine : this", ""];
    page += &table("Commands a second", &head, rates.iter().map(rate));
    page += "</html>\n";
    Ok(page)
}

type Row = Vec<String>;

/// Nothing without rows: that part was not measured.
fn table(caption: &str, head: &[&str], rows: impl Iterator<Item = Row>) -> String {
    let cells = |tag: &str, row: &[String]| -> String {
        row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect()
    };
    let head: Row = head.iter().map(|cell| cell.to_string()).collect();
    let rows: String = rows.map(|row| format!("<tr>{}</tr>\n", cells("td", &row))).collect();
    if rows.is_empty() {
        return rows;
    }
    format!("<h2>{}</h2>\n<table><tr>{}</tr>\n{rows}</table>\n", escaped(caption), cells("th", &head))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Three digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn spread(Spread { low, median, high }: &Spread) -> [String; 2] {
    [number(*median), format!("{} – {}", number(*low), number(*high))]
}

fn millions(Spread { low, median, high }: &Spread) -> Spread {
    Spread { low: low / 1e6, median: median / 1e6, high: high / 1e6 }
}

fn goal(goal: &Goal) -> Row {
    let bound = format!("{} {}", if goal.at_least { "≥" } else { "≤" }, number(goal.goal));
    let met = if goal.is_met() { "met" } else { "not met" };
    let mut row = vec![goal.what.clone(), bound];
    row.extend(spread(&goal.measured));
    row.push(goal.limit.map(number).unwrap_or_default());
    row.push(met.into());
    row
}

fn trip(trip: &RoundTrip) -> Row {
    let times = [trip.interval_ns, trip.p50_ns, trip.p99_ns, trip.p999_ns].map(|ns| ns.to_string());
    let ratios = [&trip.p50_of_floor, &trip.p99_of_floor].map(|ratio| spread(ratio)[0].clone());
    [trip.lane.clone()].into_iter().chain(times).chain(ratios).collect()
}

fn merged(merging: &Merging) -> Row {
    let ratio = spread(&merging.guest_syncs_per_host_sync);
    [merging.guests.to_string()].into_iter().chain(ratio).collect()
}

fn shared(sharing: &Sharing) -> Row {
    let Sharing { vcpus, queues, host_sync_ns, .. } = sharing;
    let host = if *host_sync_ns == 0 { "none".into() } else { number(*host_sync_ns as f64 / 1e3) };
    let mut row = vec![vcpus.to_string(), queues.clone(), host];
    row.extend(spread(&millions(&sharing.commands_per_second)));
    row.extend([&millions(&sharing.syncs_per_second), &sharing.of_limit].map(|s| number(s.median)));
    row.extend(spread(&sharing.guest_syncs_per_host_sync));
    row
}

fn step((step, count): (&String, &Count)) -> Row {
    let each = match count.commands {
        0 => String::new(),
        commands => number(count.instructions as f64 / commands as f64),
    };
    vec![step.clone(), count.instructions.to_string(), each]
}

fn rate(rate: &Rate) -> Row {
    let rates = spread(&millions(&rate.per_second));
    let load = if rate.load == TLBI { rate.lane.clone() } else { format!("{}, {}", rate.lane, rate.load) };
    let batch = if rate.batch == 0 { "as sent".into() } else { rate.batch.to_string() };
    [load, rate.queues.to_string(), batch]
        .into_iter()
        .chain(rates)
        .chain(spread(&rate.of_limit))
        .chain(spread(&rate.engine_is))
        .collect()
}
