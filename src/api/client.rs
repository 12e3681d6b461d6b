//! Who is at the other end: the client's address, found once per request.
//!
//! The address is the connection's, unless that belongs to one of `server.trusted_proxies`. Then
//! `X-Forwarded-For` is read from its right end, where the nearest proxy has written whom it talked to,
//! for as long as the one who wrote is trusted: what a client sends itself stands further left and is
//! never come to. Log lines, the allow-list, the limit on failed attempts and issued tokens all use the
//! [`ClientAddress`] that [`identify`] leaves in the request; a handler takes it as an argument.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;

use super::error::ApiError;
use super::state::AppState;
use crate::domain::client::ClientAddress;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Finds out where a request comes from. Outermost of all layers: the others want to know.
pub(super) async fn identify(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(peer) = peer_of(&request) else { return unknown().into_response() };
    let client = client_of(peer, request.headers(), &state.access.settings().trusted_proxies);
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// Holds requests to `authorization.allowed_ips`. Whoever is on the node itself passes: its own tools, and
/// what looks after its health. That is a matter of the connection: a proxy elsewhere cannot say so.
pub(super) async fn admit(
    State(state): State<AppState>,
    client: ClientAddress,
    mut request: Request,
    next: Next,
) -> Response {
    let own = state.config.current().server.address.ip();
    let (is_local, is_in) = {
        let settings = state.access.settings();
        let is_local = peer_of(&request).is_some_and(|peer| {
            let is_own = peer == client.ip() && (peer.is_loopback() || peer == own);
            is_own && !speaks_for_others(peer, request.headers(), &settings.trusted_proxies)
        });
        (is_local, is_local || settings.admits(client))
    };
    if !is_in {
        return ApiError::not_admitted().into_response();
    }
    if is_local {
        request.extensions_mut().insert(Local);
    }
    next.run(request).await
}

/// Marks a request from the node itself, which no allow-list concerns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local;

impl<S: Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get().copied().ok_or_else(unknown)
    }
}

fn unknown() -> ApiError {
    ApiError::internal("the server did not say who is connected")
}

/// Who holds the other end of the connection.
fn peer_of(request: &Request) -> Option<IpAddr> {
    let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
    Some(peer.ip().to_canonical())
}

/// Whether this is a proxy's request for somebody: who that is need not be readable for it to be not the
/// proxy's own.
fn speaks_for_others(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> bool {
    headers.contains_key(FORWARDED_FOR) && trusted.iter().any(|network| network.contains(&peer))
}

fn client_of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> ClientAddress {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|network| network.contains(ip));
    let mut client = peer.to_canonical();
    let lists = headers.get_all(FORWARDED_FOR).into_iter().rev();
    let named = lists.flat_map(|list| list.to_str().unwrap_or_default().rsplit(','));
    for name in named {
        if !is_trusted(&client) {
            break;
        }
        // What a trusted proxy has not understood itself, nobody else shall.
        let Some(ip) = address_in(name) else { break };
        client = ip;
    }
    ClientAddress::new(client)
}

/// Some proxies add the port.
fn address_in(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    let ip: Option<IpAddr> = text.parse().ok().or_else(bracketed).or_else(with_port);
    ip.map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let pairs = forwarded.iter().map(|&list| {
            (axum::http::HeaderName::from_static(FORWARDED_FOR), list.parse().unwrap())
        });
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        client_of(peer.parse().unwrap(), &pairs.collect(), &trusted).to_string()
    }

    #[test]
    fn without_a_trusted_proxy_the_connection_is_what_counts() {
        assert_eq!(client("203.0.113.9", &[], &[]), "203.0.113.9");
        assert_eq!(client("203.0.113.9", &["10.0.0.1"], &[]), "203.0.113.9");
        assert_eq!(client("203.0.113.9", &["10.0.0.1"], &["192.0.2.0/24"]), "203.0.113.9");
        assert_eq!(client("192.0.2.1", &[], &["192.0.2.0/24"]), "192.0.2.1");
    }

    #[test]
    fn of_what_trusted_proxies_have_seen_the_nearest_stranger_is_the_client() {
        let trusted = ["192.0.2.0/24", "2001:db8::/32"];
        for (forwarded, expected) in [
            (&["203.0.113.9"][..], "203.0.113.9"),
            // What the client itself has sent stands on the left.
            (&["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
            (&["127.0.0.1", "203.0.113.9"], "203.0.113.9"),
            (&["203.0.113.9, 192.0.2.7,192.0.2.8"], "203.0.113.9"),
            (&["203.0.113.9, 2001:db8::1"], "203.0.113.9"),
            (&["203.0.113.9, 198.51.100.1, 192.0.2.7"], "198.51.100.1"),
            // All are trusted: a request from the proxies' own network.
            (&["192.0.2.5, 192.0.2.7"], "192.0.2.5"),
            (&["203.0.113.9:4711"], "203.0.113.9"),
            (&["[2001:dead::1]:80"], "2001:dead::1"),
            (&["[2001:dead::1]"], "2001:dead::1"),
            (&["::ffff:203.0.113.9"], "203.0.113.9"),
            // Not understood: the last one that was.
            (&["203.0.113.9, unknown"], "192.0.2.1"),
            (&["203.0.113.9, , 192.0.2.7"], "192.0.2.7"),
            (&[""], "192.0.2.1"),
        ] {
            assert_eq!(client("192.0.2.1", forwarded, &trusted), expected, "{forwarded:?}");
        }
        assert_eq!(client("::ffff:192.0.2.1", &["203.0.113.9"], &trusted), "203.0.113.9");
    }
}
