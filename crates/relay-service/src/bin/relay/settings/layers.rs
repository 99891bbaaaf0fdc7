//! The layers of the configuration: file, environment and flags, each over the one before.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Settings;
use super::error::SettingsError;
use super::key::{KEYS, PREFIX, SettingKey, find, nearest};

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ValueSource {
    Default,
    File(PathBuf),
    Variable(String),
    Flag(String),
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Settings, with the source of each key's value.
#[derive(Debug)]
pub(crate) struct Layered {
    pub(crate) settings: Settings,
    /// In the order of [`KEYS`].
    sources: Vec<ValueSource>,
}

impl Layered {
    pub(crate) fn defaults() -> Self {
        Self { settings: Settings::default(), sources: vec![ValueSource::Default; KEYS.len()] }
    }

    /// Every key with its value in force and that value's source.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static SettingKey, toml::Value, &ValueSource)> {
        KEYS.iter().zip(&self.sources).map(|(key, source)| (key, (key.toml)(&self.settings), source))
    }

    /// Sets one key.
    pub(crate) fn set(&mut self, name: &str, text: &str, source: ValueSource) -> Result<(), SettingsError> {
        let Some(index) = KEYS.iter().position(|key| key.name == name) else {
            return Err(unknown(name, source.to_string(), str::to_owned));
        };
        let key = &KEYS[index];
        (key.set)(&mut self.settings, text).map_err(|allowed| SettingsError::BadValue {
            source_name: source.to_string(),
            key: key.name,
            value: text.chars().take(64).collect(),
            allowed,
        })?;
        self.sources[index] = source;
        Ok(())
    }

    /// Lays a TOML file over the present values.
    pub(crate) fn file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| SettingsError::NotToml {
            path: path.to_owned(),
            detail: error.to_string(),
        })?;
        self.table("", &table, path)
    }

    fn table(&mut self, section: &str, table: &toml::Table, path: &Path) -> Result<(), SettingsError> {
        for (name, value) in table {
            let name = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            match value {
                toml::Value::Table(inner) if find(&name).is_none() => self.table(&name, inner, path)?,
                value => self.set(&name, &text(value), ValueSource::File(path.to_owned()))?,
            }
        }
        Ok(())
    }

    /// Lays environment variables over the present values. Only those that begin with `RELAY_` are read, and not the
    /// `reserved` ones, which mean something else.
    pub(crate) fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
        reserved: &[&str],
    ) -> Result<(), SettingsError> {
        for (variable, value) in variables {
            let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
            if reserved.contains(&variable.as_str()) {
                continue;
            }
            let name = rest.replace("__", ".").to_ascii_lowercase();
            if find(&name).is_none_or(|key| key.variable() != variable) {
                let source = ValueSource::Variable(variable).to_string();
                return Err(unknown(&name, source, |key| {
                    find(key).map_or_else(String::new, SettingKey::variable)
                }));
            }
            self.set(&name, &value, ValueSource::Variable(variable))?;
        }
        Ok(())
    }

    /// Lays one `--set key=value` over the present values.
    pub(crate) fn assignment(&mut self, given: &str) -> Result<(), SettingsError> {
        let (name, value) =
            given.split_once('=').ok_or_else(|| SettingsError::MalformedSet { given: given.to_owned() })?;
        self.set(name.trim(), value.trim(), ValueSource::Flag(format!("--set {}", name.trim())))
    }
}

fn unknown(name: &str, source_name: String, written: impl Fn(&str) -> String) -> SettingsError {
    let hint = nearest(name).map_or_else(
        || "`relay config` shows all keys".to_owned(),
        |key| format!("did you mean `{}`?", written(key.name)),
    );
    SettingsError::UnknownKey { source_name, key: name.chars().take(64).collect(), hint }
}

/// A TOML value in the text form that all layers share; a list's items are separated by commas.
fn text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn source_of<'a>(layered: &'a Layered, name: &str) -> &'a ValueSource {
        layered.values().find(|(key, _, _)| key.name == name).unwrap().2
    }

    #[test]
    fn a_later_layer_goes_over_an_earlier_one_and_the_source_is_known() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "durability = \"logged\"\n[ws]\nmax_topics = 5\nstale_after = \"90s\"")
            .unwrap();
        let mut layered = Layered::defaults();
        layered.file(file.path()).unwrap();
        layered.environment(variables(&[("RELAY_WS__MAX_TOPICS", "6"), ("HOME", "/")]), &[]).unwrap();
        layered.assignment("ws.max_topics=7").unwrap();

        assert_eq!(layered.settings.ws.max_topics, 7);
        assert_eq!(
            *source_of(&layered, "ws.max_topics"),
            ValueSource::Flag("--set ws.max_topics".to_owned())
        );
        assert_eq!(layered.settings.ws.stale_after.as_secs(), 90);
        assert_eq!(*source_of(&layered, "ws.stale_after"), ValueSource::File(file.path().to_owned()));
        assert_eq!(*source_of(&layered, "listen"), ValueSource::Default);
    }

    #[track_caller]
    fn check_error(result: Result<(), SettingsError>, expected: &str) {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }

    #[test]
    fn an_error_names_the_key_its_source_the_value_and_what_is_allowed() {
        let mut layered = Layered::defaults();
        check_error(
            layered.environment(variables(&[("RELAY_DURABILITY", "paper")]), &[]),
            "environment RELAY_DURABILITY: `durability` is `paper`; it must be `memory`, `logged`, `synced`",
        );
        check_error(
            layered.environment(variables(&[("RELAY_LISTN", "127.0.0.1:1")]), &[]),
            "environment RELAY_LISTN: there is no key `listn`; did you mean `RELAY_LISTEN`?",
        );
        check_error(
            layered.environment(variables(&[("RELAY_PORT", "80")]), &[]),
            "environment RELAY_PORT: there is no key `port`; did you mean `RELAY_LISTEN`?",
        );
        check_error(
            layered.assignment("ws.stale_after=60"),
            "flag --set ws.stale_after: `ws.stale_after` is `60`; it must be a time of at least 1 ms with its unit \
             (ms, s, m, h, d), for instance `30s`",
        );
        check_error(
            layered.assignment("colour=blue"),
            "flag --set colour: there is no key `colour`; `relay config` shows all keys",
        );
        check_error(
            layered.assignment("colour"),
            "`--set colour` must be `--set key=value`, for instance `--set ws.max_topics=50`",
        );
    }

    #[test]
    fn a_list_is_an_array_in_the_file_and_separated_by_commas_elsewhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "allowed_origins = [\"https://a.example\", \"https://b.example\"]")
            .unwrap();
        let mut layered = Layered::defaults();
        layered.file(file.path()).unwrap();
        let expected = relay_ws::OriginPolicy::AnyOf(vec![
            "https://a.example".to_owned(),
            "https://b.example".to_owned(),
        ]);
        assert_eq!(layered.settings.ws.origins, expected);
    }
}
