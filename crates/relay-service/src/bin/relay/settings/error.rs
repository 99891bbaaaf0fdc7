//! [`SettingsError`]: a mistake in the configuration.

use std::path::PathBuf;

/// A mistake in the configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("the file {} cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {} is not TOML: {}", path.display(), detail.trim().replace('\n', " "))]
    NotToml { path: PathBuf, detail: String },
    #[error("{source_name}: there is no key `{key}`; {hint}")]
    UnknownKey { source_name: String, key: String, hint: String },
    #[error("{source_name}: `{key}` is `{value}`; it must be {allowed}")]
    BadValue { source_name: String, key: &'static str, value: String, allowed: String },
    #[error("`--set {given}` must be `--set key=value`, for instance `--set ws.max_topics=50`")]
    MalformedSet { given: String },
    #[error("`{given}` is given without `{missing}`; a certificate is of use with its key alone")]
    HalfTls { given: &'static str, missing: &'static str },
}
