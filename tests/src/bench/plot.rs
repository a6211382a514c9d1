//! A picture of each measure: every round a dot, the median a line, its confidence interval a band, the target a
//! dashed line that the dots should stay below.

use std::path::Path;

use anyhow::Result;
use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::Claim;
use super::report::Measure;
use super::report::Verdict;

const FONT: &str = "sans-serif";
const PANEL: (u32, u32) = (210, 330);
const HEAD: u32 = 56;
/// More dots than this would run together.
const MOST_DOTS: usize = 200;

const GOOD: RGBColor = RGBColor(0x1b, 0x7f, 0x5c);
const BAD: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const PLAIN: RGBColor = RGBColor(0x2f, 0x5d, 0x8a);
const FAINT: RGBColor = RGBColor(0x8a, 0x8a, 0x8a);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

/// Draws a measure into an SVG file.
pub fn draw(measure: &Measure, machine: &str, path: &Path) -> Result<()> {
    // Panels with one unit share an axis, so that they can be compared by eye.
    let panels = u32::try_from(measure.claims.len().max(2))?;
    let size = (panels * PANEL.0 + 20, HEAD + PANEL.1);
    let area = SVGBackend::new(path, size).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    draw_all(measure, machine, &area).map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_all(measure: &Measure, machine: &str, area: &Area<'_>) -> Drawn {
    area.fill(&WHITE)?;
    let (head, body) = area.split_vertically(HEAD);
    head.draw(&Text::new(
        measure.title,
        (14, 12),
        (FONT, 20).into_font().color(&INK),
    ))?;
    head.draw(&Text::new(
        machine.to_owned(),
        (14, 38),
        (FONT, 11).into_font().color(&FAINT),
    ))?;
    let columns = measure.claims.len().max(1);
    let panels = body.margin(0, 0, 10, 10).split_evenly((1, columns));
    for (panel, claim) in panels.iter().zip(&measure.claims) {
        draw_claim(claim, &range(measure, claim), panel)?;
    }
    Ok(())
}

/// The axis for all claims of one kind, so that panels can be compared.
fn range(measure: &Measure, claim: &Claim) -> std::ops::Range<f64> {
    let is_alike = |other: &&Claim| {
        other.unit == claim.unit && other.target.is_some() == claim.target.is_some()
    };
    let alike: Vec<&Claim> = match claim.unit {
        "" => measure
            .claims
            .iter()
            .filter(|other| other.unit.is_empty())
            .collect(),
        "connects" => vec![claim],
        _ => measure.claims.iter().filter(is_alike).collect(),
    };
    let numbers = alike.iter().flat_map(|claim| {
        // One disturbed round must not flatten all others.
        let mut rounds = claim.rounds.clone();
        rounds.sort_by(f64::total_cmp);
        let edge = rounds.len() / 20;
        let rounds: Vec<f64> = rounds[edge..rounds.len() - edge].to_vec();
        rounds.into_iter().chain(claim.target)
    });
    let (mut low, mut high) = (f64::MAX, f64::MIN);
    for number in numbers {
        (low, high) = (low.min(number), high.max(number));
    }
    if !claim.unit.is_empty() {
        low = low.min(0.0);
    }
    let room = ((high - low) * 0.12).max(0.005);
    if claim.unit.is_empty() || low < 0.0 {
        low -= room;
    }
    low..high + room
}

fn draw_claim(claim: &Claim, range: &std::ops::Range<f64>, panel: &Area<'_>) -> Drawn {
    let colour = match claim.verdict {
        Verdict::Ok => GOOD,
        Verdict::Missed => BAD,
        Verdict::Void => FAINT,
        Verdict::Info => PLAIN,
    };
    let dots = &claim.rounds[..claim.rounds.len().min(MOST_DOTS)];
    let last = f64::from(u32::try_from(dots.len().max(2) - 1)?);
    let width = -0.08 * last..last * 1.08;
    let mut chart = ChartBuilder::on(panel)
        .margin_left(8)
        .margin_top(44)
        .margin_bottom(24)
        .y_label_area_size(50)
        .build_cartesian_2d(width.clone(), range.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_labels(6)
        .y_label_formatter(&|value| label(*value, claim.unit))
        .label_style((FONT, 11).into_font().color(&INK))
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.mix(0.25))
        .axis_style(FAINT)
        .draw()?;
    let whole = |y: f64| [(width.start, y), (width.end, y)];
    if let Some((from, to)) = claim.interval {
        let corners = [(width.start, from), (width.end, to)];
        chart.draw_series([Rectangle::new(corners, colour.mix(0.18).filled())])?;
    }
    let dot = |(index, value): (u32, &f64)| {
        let value = value.clamp(range.start, range.end);
        Circle::new((f64::from(index), value), 2, colour.mix(0.55).filled())
    };
    chart.draw_series((0u32..).zip(dots).map(dot))?;
    chart.draw_series(LineSeries::new(
        whole(claim.measured),
        colour.stroke_width(2),
    ))?;
    if let Some(target) = claim.target {
        let line = DashedLineSeries::new(whole(target), 6, 4, INK.stroke_width(1));
        chart.draw_series(line)?;
    }
    draw_words(claim, colour, panel)
}

fn draw_words(claim: &Claim, colour: RGBColor, panel: &Area<'_>) -> Drawn {
    let text = |size: u32, colour: &RGBColor| (FONT, size).into_font().color(colour);
    let number = |value| format!("{} {}", label(value, claim.unit), claim.unit);
    panel.draw(&Text::new(
        claim.what.trim().to_owned(),
        (12, 4),
        text(12, &INK),
    ))?;
    let measured = match claim.verdict {
        Verdict::Info => number(claim.measured),
        verdict => format!("{}  {verdict}", number(claim.measured).trim_end()),
    };
    panel.draw(&Text::new(measured, (12, 22), text(14, &colour)))?;
    if let Some(target) = claim.target {
        let bottom = i32::try_from(panel.dim_in_pixel().1)? - 18;
        let target = format!("target: at most {}", number(target));
        panel.draw(&Text::new(target, (12, bottom), text(11, &INK)))?;
    }
    Ok(())
}

fn label(value: f64, unit: &str) -> String {
    match value.abs() {
        _ if unit.is_empty() && value < 100.0 => format!("{value:.3}"),
        0.0 => "0".to_owned(),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
