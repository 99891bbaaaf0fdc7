//! `relay log check`, `export` and `repair`: a log on disk that no server has open.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::Context;
use relay_core::{Clock as _, SystemClock};
use relay_events::json;

use crate::cli::{LogArgs, LogCommand};
use crate::plural::counted;

pub(crate) fn run(command: LogCommand) -> anyhow::Result<()> {
    match command {
        LogCommand::Check(args) => check(&args),
        LogCommand::Export(args) => export(&args),
        LogCommand::Repair(args) => repair(&args),
    }
}

fn check(args: &LogArgs) -> anyhow::Result<()> {
    let report = relay_log::check(&args.directory)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} of {}, last offset {}",
        counted(report.events, "event"),
        counted(report.documents, "document"),
        report.last_offset
    )?;
    for detail in &report.details {
        writeln!(out, "problem: {detail}")?;
    }
    match report.open_error {
        Some(error) => Err(error.into()),
        None if report.problems == 0 => Ok(writeln!(out, "the log is whole")?),
        None => Ok(writeln!(
            out,
            "{}, none in acknowledged events; the server repairs the log when it opens it",
            counted(report.problems, "problem")
        )?),
    }
}

fn export(args: &LogArgs) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    // The log wraps the error of writing; kept apart, a closed pipe is still recognised.
    let mut refused = None;
    let now = SystemClock::new().wall();
    let report = relay_log::export(&args.directory, &mut |event| {
        // What an export hands out is bound by the event's time to live, as everything else is.
        let Some(event) = Arc::new(event).at(now) else { return Ok(()) };
        let written = out.write_all(&json::encode(&event)).and_then(|()| out.write_all(b"\n"));
        written.map_err(|error| {
            let kind = error.kind();
            refused = Some(error);
            kind.into()
        })
    });
    if let Some(error) = refused {
        return Err(error.into());
    }
    let report = report?;
    out.flush()?;
    for detail in &report.details {
        eprintln!("relay: {detail}");
    }
    if report.problems > 0 {
        let problems = counted(report.problems, "problem");
        eprintln!("relay: {problems}; all readable events were exported");
    }
    Ok(())
}

fn repair(args: &LogArgs) -> anyhow::Result<()> {
    let report = relay_log::repair(&args.directory)
        .with_context(|| format!("`{}` was not repaired", args.directory.display()))?;
    let mut out = std::io::stdout().lock();
    let Some(report) = report else {
        return Ok(writeln!(out, "the log is whole; nothing was changed")?);
    };
    for detail in &report.details {
        writeln!(out, "problem: {detail}")?;
    }
    writeln!(
        out,
        "{} kept, {} of them with another seq; clients start again in epoch {}; the damaged files are in {}",
        counted(report.events, "event"),
        report.renumbered,
        report.epoch,
        report.damaged_files.display()
    )?;
    Ok(())
}
