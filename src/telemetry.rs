//! Logs: to standard error, as text or JSON lines, at a level that a reload can change.
//!
//! Whatever the level, libraries say no more than `info`: the Docker client prints whole answers, with
//! the secrets in them, below that.

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use crate::config::{LogFormat, LogLevel};

/// Changes the level of a running daemon.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Telemetry {
    /// Installs the process's one subscriber; a second call is an error.
    pub(crate) fn init(
        format: LogFormat,
        level: LogLevel,
    ) -> Result<Self, tracing_subscriber::util::TryInitError> {
        let (filter, handle) = reload::Layer::new(filter(level));
        let registry = tracing_subscriber::registry().with(filter);
        match format {
            LogFormat::Text => {
                let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
                let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(is_terminal);
                registry.with(layer).try_init()?;
            }
            LogFormat::Json => {
                let layer = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
                registry.with(layer).try_init()?;
            }
        }
        Ok(Self { filter: handle })
    }

    pub(crate) fn set_level(&self, level: LogLevel) {
        if let Err(why) = self.filter.reload(filter(level)) {
            tracing::error!(error = %why, "the log level stays as it is");
        }
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    let (ours, others) = match level {
        LogLevel::Error => ("error", "error"),
        LogLevel::Warn => ("warn", "warn"),
        LogLevel::Info => ("info", "info"),
        LogLevel::Debug => ("debug", "info"),
        LogLevel::Trace => ("trace", "info"),
    };
    EnvFilter::new(format!("{others},lightd={ours}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_never_log_below_info() {
        assert_eq!(filter(LogLevel::Trace).to_string(), "lightd=trace,info");
        assert_eq!(filter(LogLevel::Error).to_string(), "lightd=error,error");
    }
}
