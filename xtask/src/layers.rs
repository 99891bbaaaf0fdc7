//! The layers of the workspace and the dependencies that they allow.
//!
//! Each crate can be used without its siblings. So a crate depends only on layers below its own, and siblings, which
//! share a layer, never name each other: they meet through the traits of `relay-core`. The same holds for development
//! and build dependencies, so that each crate can be built and tested alone.

use std::process::ExitCode;

use anyhow::bail;
use xtask::workspace;

/// The layers from the lowest to the highest. Every crate of the workspace is in one of them. `relay-collab` and
/// `relay-nats` are not written yet; their layer is decided.
const LAYERS: &[&[&str]] = &[
    &["relay-core"],
    &["relay-events", "relay-metrics", "relay-tasks"],
    &["relay-bus", "relay-presence", "relay-router", "relay-ws", "relay-collab", "relay-log", "relay-nats"],
    &["relay-demo"],
    &["relay-service"],
    &["xtask"],
    &["relay-harness"],
];

/// The lowest layer that composes others. The crates below it are libraries, and return typed errors.
const COMPOSITION: usize = 3;

/// The crates that the lowest layer must not depend on, since it has no runtime and does no I/O.
const RUNTIMES: &[&str] = &["tokio", "hyper", "axum", "tokio-tungstenite", "fjall", "reqwest"];

/// A dependency of a crate of the workspace.
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    for_tests: bool,
}

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    check()?;
    Ok(ExitCode::SUCCESS)
}

/// Checks the crates of this workspace.
///
/// # Errors
/// Names every edge and crate that breaks the rule.
pub(crate) fn check() -> anyhow::Result<()> {
    let metadata = workspace::metadata()?;
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let edges = package.dependencies.iter().map(|dependency| Edge {
            from: &package.name,
            to: &dependency.name,
            for_tests: dependency.kind == cargo_metadata::DependencyKind::Development,
        });
        wrong.extend(layer(&package.name).err());
        wrong.extend(edges.filter_map(|edge| forbidden(&edge)));
    }
    if !wrong.is_empty() {
        bail!(
            "{}\nfix: let the two meet through a trait in relay-core, and put them together in relay-service",
            wrong.join("\n")
        );
    }
    println!("{} crates depend only on layers below their own", metadata.packages.len());
    Ok(())
}

/// Returns the reason why an edge is forbidden, if it is.
fn forbidden(edge: &Edge<'_>) -> Option<String> {
    let Edge { from, to, for_tests } = *edge;
    let own = layer(from).ok()?;
    if own == 0 && !for_tests && RUNTIMES.contains(&to) {
        return Some(format!("{from} depends on {to}, but it has no runtime and does no I/O"));
    }
    if own < COMPOSITION && to == "anyhow" {
        return Some(format!("{from} depends on anyhow, but libraries return typed errors"));
    }
    // A crate may name itself, to test with its own features. Other names are external crates.
    if from == to || !is_ours(to) {
        return None;
    }
    match layer(to) {
        Err(unknown) => Some(unknown),
        Ok(other) if other == own => Some(format!("{from} depends on its sibling {to}")),
        Ok(other) if other > own => Some(format!("{from} depends on {to}, which is in a layer above it")),
        Ok(_) => None,
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("relay-") || name == "xtask"
}

fn layer(name: &str) -> Result<usize, String> {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&name))
        .ok_or_else(|| format!("{name} is in no layer; add it to LAYERS of xtask/src/layers.rs"))
}

#[cfg(test)]
mod tests {
    use super::{Edge, forbidden, layer};

    #[track_caller]
    fn check(from: &str, to: &str, says: Option<&str>) {
        let found = forbidden(&Edge { from, to, for_tests: false });
        match says {
            Some(says) => assert!(found.as_deref().unwrap_or("").contains(says), "{from} → {to}: {found:?}"),
            None => assert_eq!(found, None, "{from} → {to}"),
        }
    }

    #[test]
    fn lower_layers_and_foreign_crates_are_allowed() {
        check("relay-bus", "relay-core", None);
        check("relay-bus", "relay-events", None);
        check("relay-bus", "tokio", None);
        check("relay-service", "relay-ws", None);
        check("relay-service", "anyhow", None);
        check("relay-core", "relay-core", None);
    }

    #[test]
    fn siblings_and_higher_layers_are_forbidden() {
        check("relay-bus", "relay-log", Some("sibling"));
        check("relay-ws", "relay-bus", Some("sibling"));
        check("relay-core", "relay-events", Some("above"));
        check("relay-events", "relay-bus", Some("above"));
        check("relay-service", "xtask", Some("above"));
    }

    #[test]
    fn a_crate_without_a_layer_is_an_error() {
        assert!(layer("relay-new").is_err());
        check("relay-service", "relay-new", Some("no layer"));
    }

    #[test]
    fn the_core_has_no_runtime_except_in_its_tests() {
        check("relay-core", "tokio", Some("runtime"));
        assert_eq!(forbidden(&Edge { from: "relay-core", to: "tokio", for_tests: true }), None);
    }

    #[test]
    fn libraries_do_without_anyhow() {
        check("relay-log", "anyhow", Some("typed errors"));
    }
}
