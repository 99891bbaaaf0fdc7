//! `relay config`: the values in force with their sources, in the form of a configuration file; and their check.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::cli::ConfigArgs;
use crate::settings::Settings;
use crate::settings::key::KEYS;
use crate::settings::layers::Layered;

pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    if args.reference {
        return Ok(std::io::stdout().write_all(reference().as_bytes())?);
    }
    let layered = args.settings.load()?;
    // Values that the server refuses are shown as well.
    std::io::stdout().write_all(in_force(&layered).as_bytes())?;
    let service = layered.settings.service()?;
    Ok(crate::runtime()?.block_on(service.check())?)
}

/// One line per key: `key = value  # source`.
fn in_force(layered: &Layered) -> String {
    let lines: Vec<_> =
        layered.values().map(|(key, value, source)| (format!("{} = {value}", key.name), source)).collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (line, source)| {
        let _ = writeln!(text, "{line:width$}  # {source}");
        text
    })
}

/// The table of all keys, for the documentation.
fn reference() -> String {
    let defaults = Settings::default();
    let mut text = "| key | default | environment | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for key in KEYS {
        let default = (key.get)(&defaults);
        let default = if default.is_empty() { "empty".to_owned() } else { format!("`{default}`") };
        let _ = writeln!(text, "| `{}` | {default} | `{}` | {} |", key.name, key.variable(), key.meaning);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_key_with_its_default() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let documentation = std::fs::read_to_string(path).unwrap();
        assert!(
            documentation.contains(&reference()),
            "docs/configuration.md must contain what `relay config --reference` prints:\n{}",
            reference()
        );
    }

    #[test]
    fn the_printed_configuration_can_be_used_as_a_file() {
        let mut given = Layered::defaults();
        for assignment in
            ["allowed_origins=https://a.example,https://b.example", "ws.compression=true", "tls.cert=a\"b"]
        {
            given.assignment(assignment).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), in_force(&given)).unwrap();
        let mut layered = Layered::defaults();
        layered.file(file.path()).unwrap();
        for ((key, value, _), (_, expected, _)) in layered.values().zip(given.values()) {
            assert_eq!(value, expected, "{}", key.name);
        }
    }

    #[test]
    fn each_value_is_printed_as_what_it_is() {
        let mut layered = Layered::defaults();
        layered.assignment("allowed_hosts=a.example,b.example").unwrap();
        let text = in_force(&layered);
        for line in [
            "ws.max_topics = 100",
            "ws.compression = false",
            "ws.stale_after = \"1m\"",
            "retention.max_age = \"none\"",
            "allowed_origins = []",
            "allowed_hosts = [\"a.example\", \"b.example\"]",
        ] {
            assert!(text.contains(&format!("{line} ")), "{line} is not in\n{text}");
        }
    }
}
