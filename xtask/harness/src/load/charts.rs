//! The results as charts: throughput as bars, latency by percentile, and memory over time beside slow readers.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::system::System;
use super::workloads::{DeliveryFigures, Figures, Measured, Workload};

const SIZE: (u32, u32) = (900, 480);

/// Returns the colour of a system, which is the same in all charts.
fn colour(system: System) -> RGBColor {
    match system {
        System::Baseline => RGBColor(128, 128, 128),
        System::Relay => RGBColor(200, 30, 60),
        System::Ws => RGBColor(60, 140, 60),
        System::SocketIo => RGBColor(40, 40, 40),
        System::Socketioxide => RGBColor(220, 130, 20),
        System::Nats => RGBColor(40, 100, 200),
    }
}

/// A line of a chart: the system and its points.
type ChartLine = (System, Vec<(f64, f64)>);

/// Draws a chart for each kind of result into a folder.
pub(crate) fn draw(folder: &Path, results: &[Measured]) -> anyhow::Result<()> {
    let of = |workload: Workload, phase: &'static str| {
        results.iter().filter(move |result| result.workload == workload && result.phase == phase).filter_map(
            |result| match &result.result {
                Figures::Delivery(delivery) => Some((result.system, delivery)),
                Figures::Memory { .. } | Figures::Storm { .. } | Figures::Joins { .. } => None,
            },
        )
    };
    for (workload, name, members) in [
        (Workload::Broadcast1000, "1000", "1,000 members"),
        (Workload::Broadcast10000, "10000", "10,000 members"),
    ] {
        let flat_out: Vec<(System, f64)> =
            of(workload, "flat out").map(|(system, delivery)| (system, delivery.per_second)).collect();
        let title = format!("One document, {members}, flat out: messages delivered per second");
        bars(&folder.join(format!("throughput-{name}.svg")), &title, &flat_out)?;
        let paced: Vec<ChartLine> =
            of(workload, "paced").map(|(system, delivery)| (system, percentiles(delivery))).collect();
        let title = format!("One document, {members}, paced: delivery latency by percentile");
        percentile_lines(&folder.join(format!("latency-{name}.svg")), &title, &paced)?;
    }
    let memory: Vec<ChartLine> = of(Workload::Slow, "1 % stopped")
        .map(|(system, delivery)| {
            (system, delivery.memory.iter().map(|(at, kib)| (*at, *kib as f64 / 1024.0)).collect())
        })
        .collect();
    let title = "1 in 100 stops reading after a third of the time: memory of the server";
    let axes = Axes { x: "seconds", y: "resident memory, MiB", logarithmic: Logarithmic::No };
    lines(&folder.join("slow-memory.svg"), title, &axes, &memory)
}

fn percentiles(delivery: &DeliveryFigures) -> Vec<(f64, f64)> {
    delivery
        .distribution
        .iter()
        .map(|(percentile, ms)| (-(1.0 - percentile / 100.0).max(1e-5).log10(), ms.max(0.01)))
        .collect()
}

fn percentile_lines(path: &Path, title: &str, systems: &[ChartLine]) -> anyhow::Result<()> {
    let axes = Axes { x: "percentile", y: "milliseconds", logarithmic: Logarithmic::Y };
    lines(path, title, &axes, systems)
}

#[derive(PartialEq, Eq)]
enum Logarithmic {
    No,
    Y,
}

struct Axes {
    x: &'static str,
    y: &'static str,
    logarithmic: Logarithmic,
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a chart cannot be drawn: {error}")
}

fn bars(path: &Path, title: &str, systems: &[(System, f64)]) -> anyhow::Result<()> {
    let most = systems.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(());
    }
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let count = i32::try_from(systems.len())?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(100)
        .build_cartesian_2d((0..count - 1).into_segmented(), 0.0..most * 1.1)
        .map_err(failed)?;
    let name = |segment: &SegmentValue<i32>| match segment {
        SegmentValue::CenterOf(index) => usize::try_from(*index)
            .ok()
            .and_then(|index| systems.get(index))
            .map_or_else(String::new, |(system, _)| system.name().to_owned()),
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_label_formatter(&name)
        .y_label_formatter(&|value| thousands(*value))
        .y_desc("messages per second")
        .label_style(("sans-serif", 15))
        .draw()
        .map_err(failed)?;
    chart
        .draw_series((0..count).zip(systems).map(|(index, (system, value))| {
            let corners = [(SegmentValue::Exact(index), 0.0), (SegmentValue::Exact(index + 1), *value)];
            let mut bar = Rectangle::new(corners, colour(*system).filled());
            bar.set_margin(0, 0, 20, 20);
            bar
        }))
        .map_err(failed)?;
    area.present().map_err(failed)
}

fn lines(path: &Path, title: &str, axes: &Axes, systems: &[ChartLine]) -> anyhow::Result<()> {
    let points = || systems.iter().flat_map(|(_, points)| points);
    let (right, top) = points().fold((0.0f64, 0.0f64), |(right, top), (x, y)| (right.max(*x), top.max(*y)));
    if right <= 0.0 || top <= 0.0 {
        return Ok(());
    }
    let logarithmic = axes.logarithmic == Logarithmic::Y;
    // plotters' logarithmic axis is a type of its own; the logarithm of the value keeps this one function.
    let scaled = |y: f64| if logarithmic { y.log10() } else { y };
    let bottom =
        if logarithmic { points().map(|(_, y)| scaled(*y)).fold(f64::MAX, f64::min).floor() } else { 0.0 };
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(50)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..right, bottom..if logarithmic { scaled(top).ceil() } else { top * 1.1 })
        .map_err(failed)?;
    let x_label = |x: &f64| if logarithmic { percentile_label(*x) } else { format!("{x:.0}") };
    let y_label = |y: &f64| if logarithmic { power_label(*y) } else { format!("{y:.0}") };
    chart
        .configure_mesh()
        .x_labels(6)
        .y_labels(8)
        .x_label_formatter(&x_label)
        .y_label_formatter(&y_label)
        .x_desc(axes.x)
        .y_desc(axes.y)
        .label_style(("sans-serif", 15))
        .draw()
        .map_err(failed)?;
    for (system, points) in systems {
        let colour = colour(*system);
        chart
            .draw_series(LineSeries::new(
                points.iter().map(|(x, y)| (*x, scaled(*y))),
                colour.stroke_width(2),
            ))
            .map_err(failed)?
            .label(system.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font(("sans-serif", 15))
        .draw()
        .map_err(failed)?;
    area.present().map_err(failed)
}

/// Returns the label of a percentile given by its nines: 0 is the 0th percentile, 1 the 90th, 2 the 99th.
fn percentile_label(nines: f64) -> String {
    let percentile = 100.0 - 100.0 * 10f64.powf(-nines);
    let decimals = [2.5, 3.5, 4.5].iter().filter(|step| nines > **step).count();
    format!("p{percentile:.decimals$}")
}

fn power_label(power: f64) -> String {
    let value = 10f64.powf(power);
    if value < 1.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(group));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{percentile_label, thousands};

    #[test]
    fn labels_are_read_at_a_glance() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 4.0].map(percentile_label), ["p0", "p90", "p99", "p99.9", "p99.99"]);
        assert_eq!([0.0, 950.0, 1_000.0, 1_250_000.0].map(thousands), ["0", "950", "1,000", "1,250,000"]);
    }
}
