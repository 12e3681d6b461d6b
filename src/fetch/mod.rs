//! Files from elsewhere, by a URL that an outsider has given.
//!
//! The rule is kept where connections are made: names are resolved by [`Guard`], which lets through only
//! addresses that may be reached, and the connection goes to exactly those, so a name that answers
//! differently the next time wins nothing. Addresses in the URL itself are judged before; redirects are
//! followed here, one by one, each judged like the first. Nothing of this node is sent along: no
//! credentials, no referrer, no cookies, no proxy.

mod address;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Response, StatusCode, header, redirect};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::{Host, Url};

use self::address::may_reach;

const MAX_REDIRECTS: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Fetches at once; further ones wait.
const SLOTS: usize = 8;

/// Why nothing was fetched. Each text is fit for the outside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("only addresses with http or https can be fetched")]
    Scheme,
    #[error("the address must not hold a user name or password")]
    Credentials,
    /// Which of the reasons it was is nobody's business.
    #[error("{host} may not be reached from here")]
    Refused { host: String },
    #[error("the name {host} cannot be resolved")]
    Unresolved { host: String },
    #[error("there are too many redirects")]
    TooManyRedirects,
    #[error("a redirect leads nowhere")]
    BadRedirect,
    #[error("the other side answered {status}")]
    Status { status: u16 },
    #[error("the file is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: u64 },
    #[error("it took too long")]
    TimedOut,
    #[error("the connection to {host} failed")]
    Connection { host: String, source: reqwest::Error },
    #[error("lightd cannot make a client to fetch with")]
    Client { source: reqwest::Error },
    #[error("the file broke off")]
    BrokeOff { source: reqwest::Error },
}

/// What a fetch is held to.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Networks that may be reached although they are not public.
    pub(crate) allowed: Vec<IpNet>,
    pub(crate) max_bytes: u64,
}

/// A file that has begun to arrive.
pub(crate) struct Fetched {
    /// Where it was in the end.
    pub(crate) url: Url,
    pub(crate) disposition: Option<Vec<u8>>,
    pub(crate) length: Option<u64>,
    pub(crate) content: BoxStream<'static, Result<Bytes, FetchError>>,
}

/// Resolves a name to addresses.
pub(crate) type Lookup =
    Arc<dyn Fn(String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Fetcher {
    lookup: Lookup,
    slots: Arc<Semaphore>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::with_lookup(Arc::new(|name| {
            async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            }
            .boxed()
        }))
    }
}

/// Refuses what can be seen to be wrong from the address alone.
pub(crate) fn check_url(url: &Url, rules: &Rules) -> Result<(), FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(FetchError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(FetchError::Credentials);
    }
    // The connector does not ask the resolver about these.
    let literal = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(_)) => None,
        None => return Err(FetchError::Scheme),
    };
    match literal {
        Some(address) if !may_reach(address, &rules.allowed) => Err(refused(url)),
        _ => Ok(()),
    }
}

fn host_of(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

fn refused(url: &Url) -> FetchError {
    FetchError::Refused { host: host_of(url) }
}

impl Fetcher {
    pub(crate) fn with_lookup(lookup: Lookup) -> Self {
        Self { lookup, slots: Arc::new(Semaphore::new(SLOTS)) }
    }

    /// Asks for a file, and returns once it begins to arrive.
    pub(crate) async fn fetch(&self, url: Url, rules: &Rules) -> Result<Fetched, FetchError> {
        check_url(&url, rules)?;
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.expect("invariant: the slots are never closed");
        let client = self.client(rules)?;
        let mut url = url;
        for _ in 0..=MAX_REDIRECTS {
            check_url(&url, rules)?;
            let response = client
                .get(url.clone())
                // What is stored is what the other side has, and as long as it says.
                .header(header::ACCEPT_ENCODING, "identity")
                .send()
                .await
                .map_err(|source| failed(&url, source))?;
            let from = response.remote_addr().map(|address| address.ip());
            if from.is_some_and(|address| !may_reach(address, &rules.allowed)) {
                return Err(refused(&url));
            }
            match redirect_of(&response, &url)? {
                Some(next) => url = next,
                None => return begin(response, url, rules.max_bytes, slot),
            }
        }
        Err(FetchError::TooManyRedirects)
    }

    fn client(&self, rules: &Rules) -> Result<reqwest::Client, FetchError> {
        let guard = Guard { lookup: Arc::clone(&self.lookup), allowed: rules.allowed.clone() };
        reqwest::Client::builder()
            .user_agent(concat!("lightd/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .referer(false)
            .redirect(redirect::Policy::none())
            .dns_resolver(Arc::new(guard))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_MAX)
            // A second request on a connection would not be judged again.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|source| FetchError::Client { source })
    }
}

fn redirect_of(response: &Response, url: &Url) -> Result<Option<Url>, FetchError> {
    let is_redirect = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    if !is_redirect {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
    location.and_then(|to| url.join(to).ok()).map(Some).ok_or(FetchError::BadRedirect)
}

fn begin(
    response: Response,
    url: Url,
    max_bytes: u64,
    slot: OwnedSemaphorePermit,
) -> Result<Fetched, FetchError> {
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status { status: response.status().as_u16() });
    }
    let length = response.content_length();
    if length.is_some_and(|length| length > max_bytes) {
        return Err(FetchError::TooLarge { max_bytes });
    }
    let disposition = response.headers().get(header::CONTENT_DISPOSITION);
    let disposition = disposition.map(|text| text.as_bytes().to_vec());
    let mut left_bytes = max_bytes;
    let content = response.bytes_stream().map(move |chunk| {
        let _held_until_the_end = &slot;
        let chunk =
            chunk.map_err(|source| FetchError::BrokeOff { source: source.without_url() })?;
        left_bytes =
            left_bytes.checked_sub(chunk.len() as u64).ok_or(FetchError::TooLarge { max_bytes })?;
        Ok(chunk)
    });
    Ok(Fetched { url, disposition, length, content: content.boxed() })
}

/// Finds our own refusal in what the connector made of it.
fn failed(url: &Url, source: reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    while let Some(error) = cause {
        match error.downcast_ref::<Unreachable>() {
            Some(Unreachable::Refused) => return refused(url),
            Some(Unreachable::Unresolved) => {
                return FetchError::Unresolved { host: host_of(url) };
            }
            None => cause = error.source(),
        }
    }
    if source.is_timeout() {
        return FetchError::TimedOut;
    }
    FetchError::Connection { host: host_of(url), source: source.without_url() }
}

/// What stands between a name and a connection.
struct Guard {
    lookup: Lookup,
    allowed: Vec<IpNet>,
}

#[derive(Debug, thiserror::Error)]
enum Unreachable {
    #[error("every address of the name may not be reached")]
    Refused,
    #[error("the name has no address")]
    Unresolved,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, allowed) = (Arc::clone(&self.lookup), self.allowed.clone());
        Box::pin(async move {
            let found = lookup(name.as_str().to_owned()).await.unwrap_or_default();
            if found.is_empty() {
                return Err(Unreachable::Unresolved.into());
            }
            let may = found.into_iter().filter(|address| may_reach(*address, &allowed));
            let may: Vec<SocketAddr> = may.map(|address| SocketAddr::new(address, 0)).collect();
            if may.is_empty() {
                return Err(Unreachable::Refused.into());
            }
            Ok(Box::new(may.into_iter()) as Addrs)
        })
    }
}
