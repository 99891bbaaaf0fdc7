//! The documentation of HTTP and of rules is what the server does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by unwrapping it"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use relay_core::DeliveryClass;

use crate::support::{Server, data, request, run, success};

/// A path of the repository.
fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The texts that a document has between backticks, without its blocks of code.
fn code_spans(document: &str) -> Vec<String> {
    let text = fs::read_to_string(at(document)).unwrap();
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The files of a folder and of those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The paths of the routes in the source. The files of the page are no part of the interface.
fn paths() -> BTreeSet<String> {
    let modules = files(&at("crates/relay-service/src/http"));
    let modules = modules.into_iter().filter(|path| !path.ends_with("page.rs"));
    let sources = modules.chain([at("crates/relay-service/src/http.rs")]);
    let text: String = sources.map(|source| fs::read_to_string(source).unwrap()).collect();
    let path = |route: &str| {
        let argument = route.trim_start().split(',').next().unwrap();
        let literal = if argument.starts_with('"') {
            argument
        } else {
            text.split(&format!("const {argument}: &str = ")).nth(1).unwrap()
        };
        literal.split('"').nth(1).unwrap().to_owned()
    };
    text.split(".route(").skip(1).map(path).collect()
}

#[test]
fn each_kind_is_documented_with_its_class() {
    let protocol = fs::read_to_string(at("docs/protocol.md")).unwrap();
    let table = protocol.split("### Kinds").nth(1).unwrap();
    for kind in relay_events::KINDS {
        let row = table.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{kind}`")));
        let row = row.unwrap_or_else(|| panic!("`{kind}` has no row"));
        let class = match kind.class() {
            DeliveryClass::Sequenced => "sequenced",
            DeliveryClass::Logged => "logged",
            DeliveryClass::Ephemeral => "ephemeral",
        };
        assert!(row.split('|').nth(2).unwrap().contains(class), "{row}");
    }
}

#[test]
fn each_path_is_documented_with_the_methods_that_it_takes() {
    let data = data();
    let server = Server::start_with(data.path(), &["--set", "ws.echo=true"]);
    let mut taken = BTreeSet::new();
    for path in paths() {
        let refused = request(server.address, "PATCH", &path.replace(['{', '}'], ""), &[], b"");
        assert_eq!(refused.status, 405, "{path}: {refused:?}");
        let methods = refused.header("allow").expect("the methods of the path").split(',').map(str::trim);
        taken.extend(methods.filter(|method| *method != "HEAD").map(|method| format!("{method} {path}")));
    }
    let spans = ["docs/protocol.md", "docs/routing.md"].into_iter().flat_map(code_spans);
    let documented: BTreeSet<String> = spans
        .filter(|span| ["GET /", "POST /", "PUT /", "DELETE /"].iter().any(|start| span.starts_with(start)))
        .map(|span| span.split_once('?').map_or(span.clone(), |(path, _)| path.to_owned()))
        .collect();
    assert_eq!(documented, taken);
}

#[test]
fn the_documented_rules_are_in_order_and_without_a_warning() {
    let text = fs::read_to_string(at("docs/routing.md")).unwrap();
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let data = data();
    let file = data.path().join("rules.toml");
    fs::write(&file, rest.split_once("```").unwrap().0).unwrap();
    let checked = run(&["rules", "check", file.to_str().unwrap()]);
    assert_eq!(success(&checked), "1 rule and 2 targets are in order\n");
    assert_eq!(String::from_utf8_lossy(&checked.stderr), "");
}
