//! `lightd check-config`: what a start would work with, or everything that stops it.

use std::io::{self, Write};

use crate::config::ConfigError;
use crate::config::source::Source;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

pub(crate) fn run(source: &Source, out: &mut dyn Write) -> Result<(), CheckError> {
    let config = source.preview()?;
    let text = serde_json::to_string_pretty(&config.masked()).map_err(io::Error::from)?;
    writeln!(out, "{text}")?;
    Ok(())
}
