//! Where the instructions of a command's way go, as a picture.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Instructions;
use super::plots::{COLOURS, FONT, Fail};

const SIZE: (u32, u32) = (900, 400);
/// Steps that are counted by themselves; what is left of the whole way is the worker's own.
const STEPS: [(&str, &str); 5] = [
    ("write", "the guest writes and rings"),
    ("fetch", "fetch"),
    ("check", "check and rewrite"),
    ("submit", "hand to the host's ring"),
    ("execute", "the host takes them"),
];
const REST: &str = "sweeps and completion";
/// Colours of the limit, of the steps, and of the rest.
const LIMIT: RGBColor = COLOURS[0];

/// Instructions a command, for groups of 64 and of 2, the limit's beside the engine's; nothing if a figure is missing.
pub(super) fn breakdown(instructions: &Instructions) -> Result<Option<String>, Fail> {
    let [Some(many), Some(two)] = [64, 2].map(|group| bars(instructions, group)) else { return Ok(None) };
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (bars, legend) = area.split_horizontally(640);
    for (area, (group, bars)) in bars.split_evenly((2, 1)).iter().zip([(64, many), (2, two)]) {
        panel(area, &format!("instructions a command, groups of {group}"), &bars)?;
    }
    let names = STEPS.map(|(_, name)| name).into_iter().chain([REST]).enumerate();
    let entries = names.map(|(i, name)| (name, colour(i))).chain([("the limit, all of it", LIMIT)]);
    for (row, (name, colour)) in (0..).zip(entries) {
        let y = 40 + 28 * row;
        legend.draw(&Rectangle::new([(8, y), (28, y + 16)], colour.filled()))?;
        legend.draw(&Rectangle::new([(8, y), (28, y + 16)], BLACK))?;
        legend.draw(&Text::new(name, (36, y), FONT))?;
    }
    area.present()?;
    drop((area, bars, legend));
    Ok(Some(svg))
}

/// The limit, and the engine's steps with the rest, in instructions a command.
fn bars(instructions: &Instructions, group: u64) -> Option<(f64, Vec<f64>)> {
    let count = |step: &str| {
        let count = instructions.steps.get(&format!("{step}({group})"))?;
        Some(count.instructions as f64 / count.commands.max(1) as f64)
    };
    let mut steps = STEPS.iter().map(|(step, _)| count(step)).collect::<Option<Vec<_>>>()?;
    steps.push(count("way_engine")? - steps.iter().sum::<f64>());
    Some((count("way_limit")?, steps))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn panel(area: &Area<'_>, what: &str, (limit, steps): &(f64, Vec<f64>)) -> Result<(), Fail> {
    let most = steps.iter().sum::<f64>().max(*limit);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .x_label_area_size(48)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..most * 1.05, 0.0..2.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .label_style(FONT)
        .y_labels(5)
        // A name at the middle of each bar.
        .y_label_formatter(&|y| match y {
            0.5 => "engine".into(),
            1.5 => "limit".into(),
            _ => String::new(),
        })
        .x_desc(what)
        .light_line_style(TRANSPARENT)
        .draw()?;
    let mut bar = |from: f64, to: f64, bottom: f64, colour: RGBColor| -> Result<(), Fail> {
        let corners = [(from, bottom + 0.2), (to, bottom + 0.8)];
        chart.draw_series([
            Rectangle::new(corners, colour.filled()),
            Rectangle::new(corners, BLACK.stroke_width(1)),
        ])?;
        Ok(())
    };
    bar(0.0, *limit, 1.0, LIMIT)?;
    let mut from = 0.0;
    for (i, step) in steps.iter().enumerate() {
        bar(from, from + step, 0.0, colour(i))?;
        from += step;
    }
    Ok(())
}

fn colour(i: usize) -> RGBColor {
    COLOURS[1 + i]
}
