use super::grant::Ended;
use super::*;
use crate::domain::access::{Permission, Principal};
use crate::domain::ids::ContainerId;
use crate::store::testing::open;

const NODE: &str = "lightd_node_0123456789";

fn settings(enabled: bool, token: &str) -> AccessSettings {
    AccessSettings { enabled, node_token: SecretDigest::of(token), allowed_origins: Vec::new() }
}

struct Fixture {
    _folder: tempfile::TempDir,
    access: Access,
    settings: watch::Sender<AccessSettings>,
}

fn fixture() -> Fixture {
    let (folder, store) = open();
    let (sender, receiver) = watch::channel(settings(true, NODE));
    Fixture { _folder: folder, access: Access::new(store, receiver), settings: sender }
}

async fn issue(access: &Access, ttl: &str, once: bool) -> IssuedToken {
    let ttl = Span::parse(ttl).unwrap();
    access.issue(TokenRequest { ttl, remove_on_use: once, scope: Scope::default() }).await.unwrap()
}

async fn within_5_s<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(5), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within 5 s"),
    }
}

#[tokio::test]
async fn the_nodes_token_is_the_present_one() {
    let it = fixture();
    assert!(matches!(it.access.check(None).await, Err(AccessError::NoToken)));
    for bad in ["", "lightd_", "lightd_node_0123456788", "Bearer x"] {
        assert!(matches!(it.access.check(Some(bad)).await, Err(AccessError::BadToken)), "{bad}");
    }
    let mut grant = it.access.check(Some(NODE)).await.unwrap();
    assert_eq!(grant.principal, Principal::Node);
    let other = "lightd_other_0123456789";
    it.settings.send_replace(settings(true, other));
    assert!(it.access.check(Some(NODE)).await.is_err());
    assert!(it.access.check(Some(other)).await.is_ok());
    assert_eq!(within_5_s("the end of the old token", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn anyone_gets_in_only_while_authorization_is_off() {
    let it = fixture();
    it.settings.send_replace(settings(false, NODE));
    let mut grant = it.access.check(None).await.unwrap();
    assert_eq!(grant.principal, Principal::Anonymous);
    it.settings.send_replace(settings(true, NODE));
    assert_eq!(within_5_s("the end of the grant", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn an_issued_token_carries_its_scope_and_never_shows_again() {
    let it = fixture();
    let scope = Scope {
        containers: Some([ContainerId::parse("a").unwrap()].into()),
        permissions: Some([Permission::ConsoleRead].into()),
    };
    let request = TokenRequest {
        ttl: Span::parse("15m").unwrap(),
        remove_on_use: false,
        scope: scope.clone(),
    };
    let issued = it.access.issue(request).await.unwrap();
    let token = issued.token.expose();
    assert!(is_token(token));
    let left = issued.expires_at.0 - UnixSeconds::now().0;
    assert!((899..=901).contains(&left), "{left}");
    for _ in 0..3 {
        let grant = it.access.check(Some(token)).await.unwrap();
        assert_eq!(grant.principal, Principal::Token { id: issued.id, scope: scope.clone() });
    }
    let list = it.access.list().await.unwrap();
    assert_eq!(list.len(), 1);
    assert!(list[0].last_used_at.is_some());
    assert!(token.starts_with(&list[0].prefix) && list[0].prefix.len() < 15);
}

#[tokio::test]
async fn only_sensible_lifetimes_are_given() {
    let it = fixture();
    for bad in ["999ms", "366d"] {
        let ttl = Span::parse(bad).unwrap();
        let request = TokenRequest { ttl, remove_on_use: false, scope: Scope::default() };
        assert!(matches!(it.access.issue(request).await, Err(AccessError::BadTtl)), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_uses_at_once_of_a_token_for_one_use_one_wins() {
    let it = fixture();
    for _ in 0..20 {
        let issued = issue(&it.access, "1h", true).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (access, token) = (it.access.clone(), issued.token.clone());
            tasks.spawn(async move { access.check(Some(token.expose())).await.is_ok() });
        }
        let won = tasks.join_all().await.into_iter().filter(|won| *won).count();
        assert_eq!(won, 1);
    }
}

/// CVE-2025-68954, GHSA-hr7j-63v7-vj7g: sessions went on after the right to them was taken away.
#[tokio::test]
async fn a_revoked_token_ends_its_sockets_and_no_others() {
    let it = fixture();
    let one = issue(&it.access, "1h", false).await;
    let two = issue(&it.access, "1h", false).await;
    let mut mine = it.access.check(Some(one.token.expose())).await.unwrap();
    let mut others = it.access.check(Some(two.token.expose())).await.unwrap();
    it.access.revoke(one.id).await.unwrap();
    assert_eq!(within_5_s("the revocation", mine.ended()).await, Ended::Revoked);
    assert!(it.access.check(Some(one.token.expose())).await.is_err());
    assert!(futures_util::poll!(Box::pin(others.ended())).is_pending());
    let again = it.access.revoke(one.id).await;
    assert!(matches!(again, Err(AccessError::Store(StoreError::NoSuchToken))));
}

/// CVE-2025-68954, GHSA-hr7j-63v7-vj7g, where the news of it was lost.
#[tokio::test]
async fn a_socket_that_missed_many_revocations_still_learns_of_its_own() {
    let it = fixture();
    let mine = issue(&it.access, "1h", false).await;
    let once = issue(&it.access, "1h", true).await;
    let mut grant = it.access.check(Some(mine.token.expose())).await.unwrap();
    let mut once = it.access.check(Some(once.token.expose())).await.unwrap();
    it.access.revoke(mine.id).await.unwrap();
    for _ in 0..REVOCATIONS + 5 {
        it.access.revoked.send(TokenId::random()).unwrap();
    }
    assert_eq!(within_5_s("the revocation", grant.ended()).await, Ended::Revoked);
    let wait = tokio::time::timeout(Duration::from_millis(50), once.ended()).await;
    assert!(wait.is_err(), "its row is gone because it was used");
}

#[tokio::test]
async fn an_expired_token_is_no_token_and_ends_its_sockets() {
    let it = fixture();
    let issued = issue(&it.access, "1s", false).await;
    let mut grant = it.access.check(Some(issued.token.expose())).await.unwrap();
    assert_eq!(within_5_s("the end of one second", grant.ended()).await, Ended::Expired);
    assert!(it.access.check(Some(issued.token.expose())).await.is_err());
    assert_eq!(it.access.list().await.unwrap(), []);
}
