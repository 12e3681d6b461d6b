use super::grant::Ended;
use super::*;
use crate::domain::access::Permission;
use crate::store::testing::open;

const NODE: &str = "lightd_node_0123456789";

fn settings(enabled: bool, token: &str) -> AccessSettings {
    AccessSettings { enabled, ..AccessSettings::for_tests(token) }
}

fn home() -> ClientAddress {
    ClientAddress::parse("203.0.113.9").unwrap()
}

fn all() -> TokenPage {
    TokenPage { container: None, after: None, limit: 1000 }
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
    let request = TokenRequest { ttl, remove_on_use: once, scope: Scope::default() };
    access.issue(request, &Principal::Node, home()).await.unwrap()
}

/// Waits until all that was given to the store before is in it.
async fn is_noted(access: &Access) {
    access.store.write("test", |_| Ok(())).await.unwrap();
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
    assert!(matches!(it.access.check(None, home()).await, Err(AccessError::NoToken)));
    for bad in ["", "lightd_", "lightd_node_0123456788", "Bearer x"] {
        assert!(
            matches!(it.access.check(Some(bad), home()).await, Err(AccessError::BadToken)),
            "{bad}"
        );
    }
    let mut grant = it.access.check(Some(NODE), home()).await.unwrap();
    assert_eq!(grant.principal, Principal::Node);
    let other = "lightd_other_0123456789";
    it.settings.send_replace(settings(true, other));
    assert!(it.access.check(Some(NODE), home()).await.is_err());
    assert!(it.access.check(Some(other), home()).await.is_ok());
    assert_eq!(within_5_s("the end of the old token", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn anyone_gets_in_only_while_authorization_is_off() {
    let it = fixture();
    it.settings.send_replace(settings(false, NODE));
    let mut grant = it.access.check(None, home()).await.unwrap();
    assert_eq!(grant.principal, Principal::Anonymous);
    it.settings.send_replace(settings(true, NODE));
    assert_eq!(within_5_s("the end of the grant", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn a_grant_ends_when_the_allow_list_leaves_its_address_out() {
    let it = fixture();
    let listed = |list: &[&str]| AccessSettings {
        allowed_ips: list.iter().map(|net| net.parse().unwrap()).collect(),
        ..settings(true, NODE)
    };
    it.settings.send_replace(listed(&["203.0.113.0/24"]));
    let issued = issue(&it.access, "1h", false).await;
    for token in [NODE, issued.token.expose()] {
        it.settings.send_replace(listed(&["203.0.113.0/24"]));
        let on_the_node = it.access.check(Some(token), home()).await.unwrap();
        let granted = it.access.check(Some(token), home()).await.unwrap();
        let mut granted = it.access.while_admitted(granted, home());
        it.settings.send_replace(listed(&["203.0.113.0/28"]));
        assert!(futures_util::poll!(Box::pin(granted.ended())).is_pending(), "it is in there");
        it.settings.send_replace(listed(&["203.0.113.128/25"]));
        let why = within_5_s("the end of the grant", granted.ended()).await;
        assert_eq!(why, Ended::NotAdmitted);
        let mut on_the_node = on_the_node;
        assert!(futures_util::poll!(Box::pin(on_the_node.ended())).is_pending());
    }
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
    let issued = it.access.issue(request, &Principal::Node, home()).await.unwrap();
    let token = issued.token.expose();
    assert!(is_token(token));
    let left = issued.expires_at.0 - UnixSeconds::now().0;
    assert!((899..=901).contains(&left), "{left}");
    for _ in 0..3 {
        let grant = it.access.check(Some(token), home()).await.unwrap();
        assert_eq!(grant.principal, Principal::Token { id: issued.id, scope: scope.clone() });
    }
    is_noted(&it.access).await;
    let list = it.access.list(all()).await.unwrap();
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
        assert!(
            matches!(
                it.access.issue(request, &Principal::Node, home()).await,
                Err(AccessError::BadTtl)
            ),
            "{bad}"
        );
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
            tasks.spawn(async move { access.check(Some(token.expose()), home()).await.is_ok() });
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
    let mut mine = it.access.check(Some(one.token.expose()), home()).await.unwrap();
    let mut others = it.access.check(Some(two.token.expose()), home()).await.unwrap();
    it.access.revoke(one.id).await.unwrap();
    assert_eq!(within_5_s("the revocation", mine.ended()).await, Ended::Revoked);
    assert!(it.access.check(Some(one.token.expose()), home()).await.is_err());
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
    let mut grant = it.access.check(Some(mine.token.expose()), home()).await.unwrap();
    let mut once = it.access.check(Some(once.token.expose()), home()).await.unwrap();
    it.access.revoke(mine.id).await.unwrap();
    for _ in 0..crate::store::token_index::ENDS + 5 {
        it.access.store.tokens().tell_gone(TokenId::random());
    }
    assert_eq!(within_5_s("the revocation", grant.ended()).await, Ended::Revoked);
    let wait = tokio::time::timeout(Duration::from_millis(50), once.ended()).await;
    assert!(wait.is_err(), "it is used up, but nobody has revoked it");
}

#[tokio::test]
async fn an_expired_token_is_no_token_and_ends_its_sockets() {
    let it = fixture();
    let issued = issue(&it.access, "1s", false).await;
    let mut grant = it.access.check(Some(issued.token.expose()), home()).await.unwrap();
    assert_eq!(within_5_s("the end of one second", grant.ended()).await, Ended::Expired);
    assert!(it.access.check(Some(issued.token.expose()), home()).await.is_err());
    assert_eq!(it.access.list(all()).await.unwrap(), []);
    assert!(it.access.store.tokens().exists(issued.id), "until somebody looks");
    assert_eq!(it.access.sweep().await.unwrap(), 1);
    assert!(!it.access.store.tokens().exists(issued.id));
}

#[tokio::test]
async fn a_used_token_for_one_use_still_ends_what_it_opened_when_it_is_revoked() {
    let it = fixture();
    let issued = issue(&it.access, "1h", true).await;
    let mut grant = it.access.check(Some(issued.token.expose()), home()).await.unwrap();
    let shown = it.access.show(issued.id).await.unwrap();
    assert!(shown.is_used_up() && shown.last_used_from == Some(home()));
    it.access.revoke(issued.id).await.unwrap();
    assert_eq!(within_5_s("the revocation", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn the_token_before_is_good_until_its_grace_is_over_or_taken_back() {
    let it = fixture();
    let other = "lightd_other_0123456789";
    let with_grace = |until| AccessSettings {
        previous: Some(PreviousToken { digest: SecretDigest::of(NODE), until }),
        ..settings(true, other)
    };
    let mut grant = it.access.check(Some(NODE), home()).await.unwrap();
    it.settings.send_replace(with_grace(UnixSeconds(UnixSeconds::now().0 + 3600)));
    assert!(futures_util::poll!(Box::pin(grant.ended())).is_pending());
    for token in [NODE, other] {
        let grant = it.access.check(Some(token), home()).await.unwrap();
        assert_eq!(grant.principal, Principal::Node);
    }
    it.settings.send_replace(with_grace(UnixSeconds(UnixSeconds::now().0 + 1)));
    assert_eq!(within_5_s("the end of the grace", grant.ended()).await, Ended::Expired);
    assert!(it.access.check(Some(NODE), home()).await.is_err());
    it.settings.send_replace(with_grace(UnixSeconds(UnixSeconds::now().0 + 3600)));
    let mut grant = it.access.check(Some(NODE), home()).await.unwrap();
    it.settings.send_replace(settings(true, other));
    assert_eq!(within_5_s("the end of the grace", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn whoever_shares_an_address_with_an_attacker_is_not_locked_out() {
    let it = fixture();
    it.settings.send_modify(|now| {
        now.failed_attempts.burst = std::num::NonZeroU32::new(3).unwrap();
        now.failed_attempts.per_minute = std::num::NonZeroU32::MIN;
    });
    let elsewhere = ClientAddress::parse("203.0.113.10").unwrap();
    let issued = issue(&it.access, "1h", false).await;
    it.access.check(Some(NODE), home()).await.unwrap();
    for from in [home(), elsewhere] {
        let mut refused = 0;
        while !matches!(
            it.access.check(Some("lightd_guess_000000000"), from).await,
            Err(AccessError::TooManyAttempts { retry_after }) if retry_after.as_secs() <= 60
        ) {
            refused += 1;
            assert!(refused <= 3, "never too many");
        }
        assert!(it.access.check(Some(issued.token.expose()), from).await.is_ok());
        assert!(matches!(it.access.check(None, from).await, Err(AccessError::NoToken)));
    }
    assert!(it.access.check(Some(NODE), home()).await.is_ok(), "it was good from there before");
    let first = it.access.check(Some(NODE), elsewhere).await;
    assert!(matches!(first, Err(AccessError::TooManyAttempts { .. })), "a guess that is right");
}

#[tokio::test]
async fn nor_is_he_after_a_restart_of_lightd() {
    let it = fixture();
    let elsewhere = ClientAddress::parse("203.0.113.10").unwrap();
    it.access.check(Some(NODE), home()).await.unwrap();
    is_noted(&it.access).await;
    it.settings.send_modify(|now| {
        now.failed_attempts.burst = std::num::NonZeroU32::MIN;
        now.failed_attempts.per_minute = std::num::NonZeroU32::MIN;
    });
    let again = Access::new(it.access.store.clone(), it.settings.subscribe());
    again.restore().await.unwrap();
    for from in [home(), elsewhere] {
        for _ in 0..2 {
            assert!(again.check(Some("lightd_guess_000000000"), from).await.is_err());
        }
    }
    assert!(again.check(Some(NODE), home()).await.is_ok());
    let other = again.check(Some(NODE), elsewhere).await;
    assert!(matches!(other, Err(AccessError::TooManyAttempts { .. })));
}

#[tokio::test]
async fn there_are_no_more_tokens_than_the_node_takes() {
    let it = fixture();
    it.settings.send_modify(|now| now.max_tokens = 3);
    let once = issue(&it.access, "1h", true).await;
    for _ in 0..2 {
        issue(&it.access, "1h", false).await;
    }
    let one_more = || {
        let ttl = Span::parse("1h").unwrap();
        let request = TokenRequest { ttl, remove_on_use: false, scope: Scope::default() };
        it.access.issue(request, &Principal::Node, home())
    };
    let full = one_more().await;
    assert!(matches!(full, Err(AccessError::Store(StoreError::TooManyTokens { most: 3 }))));
    let mut grant = it.access.check(Some(once.token.expose()), home()).await.unwrap();
    one_more().await.unwrap();
    assert_eq!(it.access.list(all()).await.unwrap().len(), 4, "what is used up counts no more");
    let going_on = tokio::time::timeout(Duration::from_millis(50), grant.ended()).await;
    assert!(going_on.is_err(), "and what it began goes on");
    assert!(matches!(one_more().await, Err(AccessError::Store(StoreError::TooManyTokens { .. }))));
    let all_gone = it.access.revoke_all(None).await.unwrap();
    assert_eq!((all_gone, it.access.list(all()).await.unwrap().len()), (4, 0));
    assert_eq!(within_5_s("the end of what it began", grant.ended()).await, Ended::Revoked);
}

#[tokio::test]
async fn where_a_token_came_from_and_was_used_is_kept() {
    let it = fixture();
    let issued = issue(&it.access, "1h", false).await;
    let elsewhere = ClientAddress::parse("2001:db8::1").unwrap();
    let shown = async || it.access.show(issued.id).await.unwrap();
    let row = shown().await;
    assert_eq!((row.issued_by.as_str(), row.issued_from), ("node", Some(home())));
    assert_eq!((row.last_used_at, row.last_used_from), (None, None));
    it.access.check(Some(issued.token.expose()), home()).await.unwrap();
    is_noted(&it.access).await;
    let row = shown().await;
    assert_eq!(row.last_used_from, Some(home()));
    let (first, now) = (row.last_used_at.unwrap(), UnixSeconds);
    assert!(!is_use_to_note(&row, first, elsewhere), "once a second is enough");
    assert!(is_use_to_note(&row, now(first.0 + 1), elsewhere));
    assert!(!is_use_to_note(&row, now(first.0 + 59), home()));
    assert!(is_use_to_note(&row, now(first.0 + 60), home()));
}

#[tokio::test]
async fn a_check_waits_for_no_disk_and_leaves_the_store_room_for_others() {
    let it = fixture();
    let issued = issue(&it.access, "1h", false).await;
    let (go_on, hangs) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let hang = move |_: &Tx<'_>| {
        begun.send(()).unwrap();
        hangs.recv().ok();
        Ok(())
    };
    let mut hung = Box::pin(it.access.store.write("hang", hang));
    assert!(futures_util::poll!(&mut hung).is_pending());
    has_begun.await.unwrap();
    let checks = async {
        for _ in 0..1000 {
            it.access.check(Some(issued.token.expose()), home()).await.unwrap();
        }
    };
    within_5_s("a check while the store hangs", checks).await;
    let mut other = Box::pin(is_noted(&it.access));
    assert!(futures_util::poll!(&mut other).is_pending());
    drop(go_on);
    hung.await.unwrap();
    other.await;
    assert_eq!(it.access.show(issued.id).await.unwrap().last_used_from, Some(home()));
}
