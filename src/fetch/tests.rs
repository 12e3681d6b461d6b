//! Fetches from servers of the test's own. The first loopback address stands for the internet, by being
//! allowed; all others are what must not be reached.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

/// Answers everything in the same way, and counts who connects.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(ip: &str, answer: impl Fn(SocketAddr) -> String) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, connections) = (answer(address), Arc::new(AtomicUsize::new(0)));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (count, seen) = (Arc::clone(&connections), Arc::clone(&requests));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                seen.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                drop(socket.write_all(answer.as_bytes()).await);
            }
        });
        Self { address, connections, requests, _tasks: tasks }
    }

    fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn port(&self) -> u16 {
        self.address.port()
    }
}

fn file(content: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
        content.len()
    )
}

fn moved(to: &str) -> String {
    format!(
        "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

fn rules() -> Rules {
    Rules { allowed: vec!["127.0.0.1/32".parse().unwrap()], max_bytes: 1000 }
}

/// Names answer with these addresses, one list after the other; the last one stays.
fn names(answers: &[&[&str]]) -> (Fetcher, Arc<AtomicUsize>) {
    let parse = |list: &&[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
    let answers = Mutex::new(answers.iter().map(parse).collect::<VecDeque<_>>());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let lookup = move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut answers = answers.lock().unwrap();
        let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        async move { Ok(next.unwrap_or_default()) }.boxed()
    };
    (Fetcher::with_lookup(Arc::new(lookup)), asked)
}

async fn fetch(fetcher: &Fetcher, url: &str) -> Result<String, FetchError> {
    let mut fetched = fetcher.fetch(Url::parse(url).unwrap(), &rules()).await?;
    let mut text = String::new();
    while let Some(chunk) = fetched.content.next().await {
        text += &String::from_utf8_lossy(&chunk?);
    }
    Ok(text)
}

#[tokio::test]
async fn a_file_is_fetched_and_nothing_of_this_node_goes_along() {
    let server = Server::start("127.0.0.1", |_| file("content")).await;
    let (fetcher, asked) = names(&[&["127.0.0.1"]]);
    let url = format!("http://files.test:{}/a?signature=x#part", server.port());
    assert_eq!(fetch(&fetcher, &url).await.unwrap(), "content");
    assert_eq!(asked.load(Ordering::SeqCst), 1, "asked once, and that is what is connected to");
    let request = server.requests.lock().unwrap()[0].to_ascii_lowercase();
    assert!(request.starts_with("get /a?signature=x http/1.1"), "{request}");
    for secret in ["authorization", "cookie", "referer", "proxy", "#part"] {
        assert!(!request.contains(secret), "{request}");
    }
}

#[tokio::test]
async fn ghsa_6rg3_8h8x_5xfv_no_internal_address_is_fetched_in_whatever_way_it_is_written() {
    let inside = Server::start("127.0.0.2", |_| file("internal")).await;
    let port = inside.port();
    let (fetcher, _) = names(&[&["127.0.0.2"]]);
    for host in [
        "127.0.0.2",
        "2130706434",
        "0x7f000002",
        "0177.0.0.2",
        "127.2",
        "%31%32%37.0.0.2",
        "[::ffff:127.0.0.2]",
        "[::ffff:7f00:2]",
        "[::127.0.0.2]",
        "[64:ff9b::7f00:2]",
        "[2002:7f00:2::]",
        "localhost",
        "inside.test",
        "127.0.0.2.",
        "0.0.0.0",
        "[::]",
        "[::1]",
        "169.254.169.254",
        "10.0.0.1",
    ] {
        let outcome = fetch(&fetcher, &format!("http://{host}:{port}/")).await;
        assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{host}: {outcome:?}");
    }
    for (url, scheme) in [
        ("file:///etc/passwd", true),
        ("ftp://127.0.0.1/x", true),
        ("http://a:b@127.0.0.1/", false),
    ] {
        let outcome = fetch(&fetcher, url).await;
        let is_expected = match outcome {
            Err(FetchError::Scheme) => scheme,
            Err(FetchError::Credentials) => !scheme,
            _ => false,
        };
        assert!(is_expected, "{url}");
    }
    assert_eq!(inside.count(), 0, "nothing has connected");
}

#[tokio::test]
async fn cve_2024_34068_a_redirect_to_an_internal_address_is_not_followed() {
    let inside = Server::start("127.0.0.2", |_| file("internal")).await;
    let port = inside.port();
    for to in [
        format!("http://127.0.0.2:{port}/"),
        format!("//127.0.0.2:{port}/"),
        format!("http://[::ffff:127.0.0.2]:{port}/"),
        format!("http://inside.test:{port}/"),
        format!("http://a:b@127.0.0.2:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let outside = Server::start("127.0.0.1", |_| moved(&to)).await;
        let (fetcher, _) = names(&[&["127.0.0.2"]]);
        let outcome = fetch(&fetcher, &format!("http://127.0.0.1:{}/", outside.port())).await;
        let is_refused = matches!(
            outcome,
            Err(FetchError::Refused { .. } | FetchError::Credentials | FetchError::Scheme)
        );
        assert!(is_refused && outside.count() == 1, "{to}: {outcome:?}");
    }
    assert_eq!(inside.count(), 0, "nothing has connected");
    let to_itself = |address: SocketAddr| moved(&format!("http://{address}/"));
    let round = Server::start("127.0.0.1", to_itself).await;
    let (fetcher, _) = names(&[&[]]);
    let outcome = fetch(&fetcher, &format!("http://127.0.0.1:{}/", round.port())).await;
    assert!(matches!(outcome, Err(FetchError::TooManyRedirects)), "{outcome:?}");
    assert_eq!(round.count(), MAX_REDIRECTS + 1);
}

#[tokio::test]
async fn cve_2024_34068_a_name_that_changes_its_address_between_two_looks_wins_nothing() {
    // The same port on both, so that only the address decides.
    let (inside, port) = loop {
        let inside = Server::start("127.0.0.2", |_| file("internal")).await;
        let port = inside.port();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            break (inside, port);
        }
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut outside = JoinSet::new();
    outside.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 1024];
            drop(socket.read(&mut request).await);
            drop(socket.write_all(moved("/again").as_bytes()).await);
        }
    });
    let (fetcher, asked) = names(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let outcome = fetch(&fetcher, &format!("http://rebinds.test:{port}/")).await;
    assert!(matches!(outcome, Err(FetchError::Refused { .. })), "{outcome:?}");
    assert_eq!((asked.load(Ordering::SeqCst), inside.count()), (2, 0));
    // Of several addresses only the good ones are tried.
    let good = Server::start("127.0.0.1", |_| file("good")).await;
    let (fetcher, _) = names(&[&["127.0.0.2", "10.0.0.1", "127.0.0.1"]]);
    let url = format!("http://mixed.test:{}/", good.port());
    assert_eq!(fetch(&fetcher, &url).await.unwrap(), "good");
    let (fetcher, _) = names(&[&[]]);
    assert!(matches!(fetch(&fetcher, &url).await, Err(FetchError::Unresolved { .. })));
}

#[tokio::test]
async fn what_is_too_large_cut_short_or_not_there_is_an_error() {
    let long = "x".repeat(1001);
    let unannounced = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{long}");
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nhalf";
    let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (answer, want) in [
        (file(&long), "the file is larger than 1000 bytes"),
        (unannounced, "the file is larger than 1000 bytes"),
        (cut.to_owned(), "the file broke off"),
        (gone.to_owned(), "the other side answered 404"),
        (moved("http://"), "a redirect leads nowhere"),
        ("nonsense".to_owned(), "the connection to 127.0.0.1 failed"),
    ] {
        let server = Server::start("127.0.0.1", |_| answer.clone()).await;
        let (fetcher, _) = names(&[&[]]);
        let outcome = fetch(&fetcher, &format!("http://127.0.0.1:{}/", server.port())).await;
        assert_eq!(outcome.unwrap_err().to_string(), want, "{answer}");
    }
}
