//! The folders, packages and built programs of this workspace.

use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand};

/// Returns the top folder of the workspace: the nearest folder with a `Cargo.lock` above the crate that runs.
///
/// Cargo names that crate when it runs the program; otherwise the folder is the one that the program was built in.
pub fn root() -> PathBuf {
    let built = env!("CARGO_MANIFEST_DIR");
    let running = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| built.to_owned());
    let is_root = |folder: &&Path| folder.join("Cargo.lock").exists();
    Path::new(&running).ancestors().find(is_root).unwrap_or(Path::new(&running)).to_owned()
}

/// Returns cargo's metadata of the workspace's own packages.
///
/// # Errors
/// When cargo fails.
pub fn metadata() -> anyhow::Result<Metadata> {
    Ok(MetadataCommand::new().current_dir(root()).no_deps().exec()?)
}

/// Returns the path of a program that cargo builds with `profile`, `debug` or `release`.
///
/// # Errors
/// When cargo fails.
pub fn built(profile: &str, program: &str) -> anyhow::Result<PathBuf> {
    let target = metadata()?.target_directory.into_std_path_buf();
    Ok(target.join(profile).join(format!("{program}{}", std::env::consts::EXE_SUFFIX)))
}
