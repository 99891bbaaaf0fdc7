//! Where things are in this workspace.

use std::path::PathBuf;

use cargo_metadata::{Metadata, MetadataCommand};

/// The top folder of the workspace: as cargo says when it runs this program, else as it was when it was built.
pub(crate) fn root() -> PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").to_owned();
    let mut folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| built()));
    folder.pop();
    folder
}

/// What cargo knows of the workspace's own packages.
pub(crate) fn metadata() -> anyhow::Result<Metadata> {
    Ok(MetadataCommand::new().current_dir(root()).no_deps().exec()?)
}

/// Where cargo puts a program that it builds with `profile`, `debug` or `release`.
pub(crate) fn built(profile: &str, program: &str) -> anyhow::Result<PathBuf> {
    let target = metadata()?.target_directory.into_std_path_buf();
    Ok(target.join(profile).join(format!("{program}{}", std::env::consts::EXE_SUFFIX)))
}
