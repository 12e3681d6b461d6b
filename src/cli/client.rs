//! How the verbs that need a running daemon reach it: the address and the token of its own
//! configuration, trusting its own certificate.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::source::Source;
use crate::config::{Config, ConfigError};
use crate::util::secret::Secret;

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("lightd does not answer on {0} (is it running? lightd doctor says more)")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("cannot read the certificate {0}")]
    Certificate(PathBuf, #[source] rustls::pki_types::pem::Error),
    #[error("TLS cannot be set up")]
    Tls(#[source] std::io::Error),
    #[error("the connection broke")]
    Http(#[source] hyper::Error),
    #[error(
        "what answers on {0} speaks no HTTP (was lightd started with --enable-tls? The configuration is all that is known here)"
    )]
    NotHttp(SocketAddr, #[source] hyper::Error),
    #[error("lightd did not answer in time")]
    Late,
    #[error("the answer is not JSON")]
    NotJson(#[source] serde_json::Error),
    #[error(
        "the lightd on {0} does not take the token of {1}; was it started with another --config?"
    )]
    OtherToken(SocketAddr, PathBuf),
    #[error("lightd refused ({0}): {1}")]
    Refused(u16, String),
}

/// By this the daemon knows its own command line in its audit log.
pub(super) const USER_AGENT: &str = concat!("lightd-cli/", env!("CARGO_PKG_VERSION"));

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// The daemon that this configuration is of.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) address: SocketAddr,
    pub(super) token: Secret,
    configuration: PathBuf,
    certificate: Option<PathBuf>,
}

impl Daemon {
    pub(super) fn of(source: &Source) -> Result<Self, ClientError> {
        Ok(Self::with(source, &source.load()?))
    }

    pub(super) fn with(source: &Source, config: &Config) -> Self {
        let mut address = config.server.address;
        // A wildcard is no address to connect to.
        address.set_ip(match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            particular => particular,
        });
        Self {
            address,
            token: config.authorization.token.clone(),
            configuration: source.path().to_owned(),
            certificate: config.server.tls.as_ref().map(|files| files.cert.clone()),
        }
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Socket>, ClientError> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|source| ClientError::Connect(self.address, source))?;
        let Some(path) = &self.certificate else { return Ok(Box::new(stream)) };
        let verifier = only_this_certificate(path)?;
        let config = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        let name = ServerName::from(self.address.ip());
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        Ok(Box::new(tls.map_err(ClientError::Tls)?))
    }
}

impl Daemon {
    /// `GET path`, as JSON.
    pub(super) async fn get(&self, path: &str) -> Result<serde_json::Value, ClientError> {
        self.ask(Method::GET, path).await
    }

    /// A request without a body; the answer, as JSON.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
    ) -> Result<serde_json::Value, ClientError> {
        let socket = self.connect().await?;
        let answer = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("Host", self.address.to_string())
                .header("Authorization", format!("Bearer {}", self.token.expose()))
                .header("Accept", "Application/vnd.pkglatv1+json")
                .header("User-Agent", USER_AGENT)
                .body(Empty::<Bytes>::new())
                .expect("invariant: the parts are plain");
            let exchange = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = response.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>((status, body))
            };
            tokio::pin!(connection, exchange);
            tokio::select! {
                done = &mut exchange => done,
                closed = &mut connection => { closed?; exchange.await }
            }
        };
        let (status, body) = tokio::time::timeout(ANSWER, answer)
            .await
            .map_err(|_| ClientError::Late)?
            .map_err(|why| match why {
                why if why.is_parse() => ClientError::NotHttp(self.address, why),
                why => ClientError::Http(why),
            })?;
        let value: serde_json::Value =
            serde_json::from_slice(&body).map_err(ClientError::NotJson)?;
        if status.is_success() {
            return Ok(value);
        }
        Err(self.refusal(status.as_u16(), &value))
    }

    pub(super) fn refusal(&self, status: u16, answer: &serde_json::Value) -> ClientError {
        if status == 401 {
            return ClientError::OtherToken(self.address, self.configuration.clone());
        }
        let why = answer["error"].as_str().unwrap_or("no reason given");
        ClientError::Refused(status, why.to_owned())
    }
}

/// Runs a verb's work to its end.
pub(super) fn block_on<T, E: From<ClientError>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| E::from(ClientError::Runtime(source)))?;
    let done = runtime.block_on(work);
    // A read of the terminal goes on until somebody types; the program does not wait for that.
    runtime.shutdown_background();
    done
}

/// Trusts the daemon's own certificate and no other: whoever reads its configuration has it at hand, and
/// it need not name the loopback address nor be signed by anyone.
#[derive(Debug)]
struct OnlyThis {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

fn only_this_certificate(path: &std::path::Path) -> Result<OnlyThis, ClientError> {
    let certificate = CertificateDer::from_pem_file(path)
        .map_err(|source| ClientError::Certificate(path.to_owned(), source))?;
    Ok(OnlyThis { certificate, provider: Arc::new(aws_lc_rs::default_provider()) })
}

impl ServerCertVerifier for OnlyThis {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("another certificate than the configured one".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_answers_in_another_protocol_is_told_apart_from_a_connection_that_broke() {
        // How TLS refuses what is no TLS; and nothing.
        for (answer, speaks) in [(&b"\x15\x03\x03\x00\x02\x02\x32"[..], true), (b"", false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let daemon = Daemon {
                address: listener.local_addr().unwrap(),
                token: Secret::new("token"),
                configuration: PathBuf::new(),
                certificate: None,
            };
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                // A close before it is read would be a reset.
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                stream.write_all(answer).await.unwrap();
            };
            let (asked, ()) = tokio::join!(daemon.get("/"), serve);
            let error = asked.unwrap_err();
            assert_eq!(matches!(error, ClientError::NotHttp(..)), speaks, "{error:?}");
        }
    }
}
