//! Pictures of the figures, as SVG. Each line has a colour and a marker of its own, so that they can be told apart on paper.

use std::error::Error;

use plotters::prelude::*;

use super::breakdown::breakdown;
use super::measure::{TLBI, TRAP};
use super::{Figures, Rate, RoundTrip};

/// A picture.
#[derive(Clone, Debug)]
pub struct Plot {
    /// A short name, fit for a file.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub caption: &'static str,
    /// The picture.
    pub svg: String,
}

pub(super) type Fail = Box<dyn Error>;

const SIZE: (u32, u32) = (900, 480);
pub(super) const FONT: (&str, u32) = ("sans-serif", 15);
pub(super) const COLOURS: [RGBColor; 9] = [
    RGBColor(90, 90, 90),
    RGBColor(200, 30, 30),
    RGBColor(160, 200, 230),
    RGBColor(80, 140, 200),
    RGBColor(20, 70, 140),
    RGBColor(220, 150, 30),
    RGBColor(60, 150, 70),
    RGBColor(150, 90, 170),
    RGBColor(0, 0, 0),
];

/// All of them, but for what was not measured.
///
/// # Errors
///
/// What the plotting said.
pub fn plots(figures: &Figures) -> Result<Vec<Plot>, Fail> {
    let Figures { rates, round_trips, instructions, .. } = figures;
    let of = |queues: Option<usize>, batch: Option<usize>| {
        let wanted = |rate: &&Rate| {
            let of = queues.is_none_or(|n| n == rate.queues) && batch.is_none_or(|n| n == rate.batch);
            rate.load == TLBI && of
        };
        rates.iter().filter(wanted).collect::<Vec<_>>()
    };
    let mut plots = Vec::new();
    if !round_trips.is_empty() {
        let caption = "From the doorbell of a TLBI and a CMD_SYNC until it has completed: half, 99 % and 99.9 % of \
                       requests take less.";
        plots.push(Plot { name: "round-trips", caption, svg: dots(round_trips)? });
    }
    if !rates.is_empty() {
        let svg = lines(&of(Some(1), None), |rate| rate.batch, "commands a doorbell")?;
        let caption = "Commands a second of one queue, by commands a doorbell.";
        plots.push(Plot { name: "batches", caption, svg });
        // One point is no line: it has no more than one queue.
        let by_queues: Vec<_> = of(None, Some(64)).into_iter().filter(|rate| rate.lane != TRAP).collect();
        let svg = lines(&by_queues, |rate| rate.queues, "queues")?;
        let caption = "Commands a second in all, by queues; 64 commands a doorbell.";
        plots.push(Plot { name: "queues", caption, svg });
    }
    if let Some(svg) = instructions.as_ref().map(breakdown).transpose()?.flatten() {
        let caption =
            "Where the instructions of a command's way go, from the guest's write to the host and back.";
        plots.push(Plot { name: "instructions", caption, svg });
    }
    Ok(plots)
}

/// The names in the order in which they come first.
fn lanes<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut lanes = Vec::new();
    for name in names {
        if !lanes.contains(&name) {
            lanes.push(name);
        }
    }
    lanes
}

/// Commands a second over something, both logarithmic, a line for each lane.
fn lines(rates: &[&Rate], x: fn(&Rate) -> usize, what: &str) -> Result<String, Fail> {
    let at = |rate: &&Rate| (x(rate) as f64, rate.per_second.median / 1e6);
    let points: Vec<_> = rates.iter().map(at).collect();
    let (xs, ys) = (bounds(points.iter().map(|at| at.0)), bounds(points.iter().map(|at| at.1)));
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    // Room for the legend on the right.
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d((xs.0 / 1.2..xs.1 * 8.0).log_scale(), (ys.0 / 1.5..ys.1 * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .label_style(FONT)
        .x_desc(format!("{what} (logarithmic)"))
        .y_desc("million commands a second (logarithmic)")
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (i, lane) in lanes(rates.iter().map(|rate| rate.lane.as_str())).into_iter().enumerate() {
        let points: Vec<_> = rates.iter().filter(|rate| rate.lane == lane).map(at).collect();
        let width = if lane == "engine" { 3 } else { 1 };
        chart.draw_series(LineSeries::new(points.clone(), colour(i).stroke_width(width)))?;
        chart
            .draw_series(points.into_iter().map(|at| marker(at, i)))?
            .label(lane)
            .legend(move |(x, y)| marker((x + 10, y), i));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font(FONT)
        .background_style(WHITE)
        .border_style(TRANSPARENT)
        .draw()?;
    area.present()?;
    drop((chart, area));
    Ok(svg)
}

/// Three times for each lane, logarithmic.
fn dots(round_trips: &[RoundTrip]) -> Result<String, Fail> {
    let quantiles = ["50 %", "99 %", "99.9 %"];
    let times = |trip: &RoundTrip| [trip.p50_ns, trip.p99_ns, trip.p999_ns].map(|ns| ns as f64);
    let (low, high) = bounds(round_trips.iter().flat_map(times));
    let rows = round_trips.len() as f64;
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(10)
        // The names are to the left of the times.
        .build_cartesian_2d((low / 12.0..high * 6.0).log_scale(), rows - 0.5..-0.5)?;
    chart
        .configure_mesh()
        .label_style(FONT)
        .x_desc("nanoseconds (logarithmic)")
        .x_label_formatter(&|value| short(*value))
        .disable_y_axis()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (row, trip) in round_trips.iter().enumerate() {
        let (row, left) = (row as f64, low / 11.0);
        let line = [(low, row), (high, row)];
        chart.draw_series(LineSeries::new(line, BLACK.mix(0.1)))?;
        chart.draw_series([Text::new(trip.lane.clone(), (left, row - 0.2), FONT)])?;
        let line = times(trip).map(|ns| (ns, row));
        chart.draw_series(LineSeries::new(line, BLACK.mix(0.4)))?;
    }
    for (i, name) in quantiles.into_iter().enumerate() {
        let points = (0..).zip(round_trips).map(|(row, trip)| (times(trip)[i], f64::from(row)));
        chart
            .draw_series(points.map(|at| marker(at, i + 1)))?
            .label(name)
            .legend(move |(x, y)| marker((x + 10, y), i + 1));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(FONT)
        .background_style(WHITE)
        .border_style(TRANSPARENT)
        .draw()?;
    area.present()?;
    drop((chart, area));
    Ok(svg)
}

fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// A circle, filled or not.
fn marker<C>(at: C, i: usize) -> Circle<C, i32> {
    let style = if i.is_multiple_of(2) { colour(i).filled() } else { colour(i).stroke_width(2) };
    Circle::new(at, 5, style)
}

/// The least and the greatest.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| (low.min(value), high.max(value)))
}

/// As short as it can be read.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}
