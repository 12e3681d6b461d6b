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

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, TlsFiles};
use crate::util::file_signature::FileSignature;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A certificate and its key, as served and as they lie on the disk.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    served: watch::Sender<Arc<ServerConfig>>,
    /// What was read last, good or not.
    read: Signatures,
}

type Signatures = [FileSignature; 2];

impl Certificate {
    pub(super) async fn load(files: TlsFiles) -> io::Result<Self> {
        // Before the reading: what is written meanwhile is another pair.
        let read = signatures(&files);
        let served = watch::Sender::new(read_pair(&files).await?);
        Ok(Self { files, served, read })
    }

    /// For the server; it follows what is read later.
    pub(super) fn served(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.served.subscribe()
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
                self.served.send_replace(pair);
                tracing::info!(cert = %cert.display(), "a new certificate is served");
            }
            Err(error) => tracing::error!(
                cert = %cert.display(), key = %key.display(), %error,
                "the new certificate and key cannot be used; the old ones are served on"
            ),
        }
    }
}

/// What the files say. Offers HTTP/1.1 and nothing else: no other is spoken.
async fn read_pair(TlsFiles { cert, key }: &TlsFiles) -> io::Result<Arc<ServerConfig>> {
    let (cert, key) = (cert.clone(), key.clone());
    let read = move || {
        let chain = CertificateDer::pem_file_iter(cert).map_err(io::Error::other)?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

fn signatures(files: &TlsFiles) -> Signatures {
    [&files.cert, &files.key].map(|path| FileSignature::of(path))
}
