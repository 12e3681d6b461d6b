//! The certificate that is served, and the one that takes its place: whoever renews it writes the files,
//! and lightd takes them up by itself.
//!
//! The files are looked at every second, and read once they have stood still for one: certificate and key
//! are two files, and between the first and the second write they do not match. A pair that cannot be used
//! is an error in the log, and the old one is served on. Connections keep the certificate that they began
//! with. A reload of the configuration does not wait for that second.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, TlsFiles};
use crate::util::file_signature::FileSignature;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A certificate and its key, as served and as they lie on the disk.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    served: RustlsConfig,
    /// What was read last, good or not.
    read: Signatures,
}

type Signatures = [FileSignature; 2];

impl Certificate {
    pub(super) async fn load(files: TlsFiles) -> io::Result<Self> {
        // Before the reading: what is written meanwhile is another pair.
        let read = signatures(&files);
        let served = RustlsConfig::from_config(read_pair(&files).await?);
        Ok(Self { files, served, read })
    }

    /// For the server; it follows what is read later.
    pub(super) fn served(&self) -> RustlsConfig {
        self.served.clone()
    }

    /// Takes up new files until `stop`.
    pub(super) async fn follow(
        mut self,
        mut reloaded: watch::Receiver<Arc<Config>>,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = self.read;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = reloaded.changed() => seen = signatures(&self.files),
                _ = tick.tick() => {}
            }
            let now = signatures(&self.files);
            let stands_still = now == std::mem::replace(&mut seen, now);
            if stands_still && now != self.read {
                self.read = now;
                self.take_up().await;
            }
        }
    }

    async fn take_up(&self) {
        let TlsFiles { cert, key } = &self.files;
        match read_pair(&self.files).await {
            Ok(pair) => {
                self.served.reload_from_config(pair);
                tracing::info!(cert = %cert.display(), "a new certificate is served");
            }
            Err(error) => tracing::error!(
                cert = %cert.display(), key = %key.display(), %error,
                "the new certificate and key cannot be used; the old ones are served on"
            ),
        }
    }
}

/// What the files say. Offers HTTP/1.1 and nothing else: no other is answered.
async fn read_pair(TlsFiles { cert, key }: &TlsFiles) -> io::Result<Arc<ServerConfig>> {
    let read = RustlsConfig::from_pem_file(cert, key).await?;
    let mut config = ServerConfig::clone(&read.get_inner());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn signatures(files: &TlsFiles) -> Signatures {
    [&files.cert, &files.key].map(|path| FileSignature::of(path))
}
