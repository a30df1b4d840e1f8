//! The HTTP endpoint: one request a connection, bounded in number, size and time.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::exposition::CONTENT_TYPE;
use super::hosts::Hosts;
use super::observation::{Observation, Surroundings};
use super::request::{Fault, MAX_HEAD_LEN, Page};
use super::{Observer, interface_counts, readiness};
use crate::config::{HostPort, Metrics};

/// A bound endpoint.
#[derive(Debug)]
pub struct Endpoint {
    listener: tokio::net::TcpListener,
    address: SocketAddr,
    hosts: Hosts,
    start_time_s: f64,
}

/// Connections that are served at once; more wait.
const MAX_CONNECTIONS: usize = 32;

/// How long a request may take to come, the relay's loop to answer, and the answer to be taken: each.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long is waited, and how much is read, for the other end to close: what arrives after that resets the connection,
/// and might take the answer with it.
const CLOSING: (Duration, u64) = (Duration::from_secs(1), 64 * 1024);

/// The endpoint's address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("metrics.listen = \"{listen}\": {source}; choose another address or port")]
pub struct ListenError {
    listen: HostPort,
    source: io::Error,
}

impl Endpoint {
    /// Listens where the configuration says; none: nowhere. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The address is not this host's, or taken.
    pub fn open(Metrics { listen, hosts }: &Metrics) -> Result<Option<Endpoint>, ListenError> {
        let Some(listen) = listen.clone() else { return Ok(None) };
        let open = || {
            let listener = TcpListener::bind((listen.host(), listen.port()))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((tokio::net::TcpListener::from_std(listener)?, address))
        };
        let (listener, address) = open().map_err(|source| ListenError { listen: listen.clone(), source })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let hosts = Hosts { listen, more: hosts.clone() };
        Ok(Some(Endpoint { listener, address, hosts, start_time_s: now.as_secs_f64() }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers everybody, by what `driver` says, until the future is dropped.
    pub async fn serve(self, driver: mpsc::Sender<Observer>) {
        let Endpoint { listener, hosts, start_time_s, .. } = self;
        let answers = Arc::new(Answers { hosts, start_time_s, driver, requests: Requests::default() });
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors: pause instead of spinning.
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            let answers = Arc::clone(&answers);
            connections.spawn(async move {
                if let Err(error) = answers.converse(stream).await {
                    tracing::debug!(%error, "a connection of the metrics endpoint failed");
                }
                drop(place);
            });
        }
    }
}

struct Answers {
    hosts: Hosts,
    start_time_s: f64,
    driver: mpsc::Sender<Observer>,
    requests: Requests,
}

impl Answers {
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        let local = stream.local_addr()?;
        let answer = match timeout(PATIENCE, self.read(&mut stream, local)).await {
            Ok(Ok(asked)) => match asked {
                Ok(page) => self.answer(page).await,
                Err(fault) => self.refusal(fault, local),
            },
            Ok(Err(error)) => return Err(error),
            Err(_) => Answer::new(408, "the request has not come in time\n"),
        };
        self.requests.count(answer.code);
        let sent = timeout(PATIENCE, stream.write_all(&answer.bytes())).await;
        if sent.is_err() {
            self.requests.count(408);
        }
        sent??;
        stream.shutdown().await?;
        let (patience, bytes) = CLOSING;
        let mut rest = stream.take(bytes);
        let _closed_or_not = timeout(patience, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        Ok(())
    }

    async fn read(&self, stream: &mut TcpStream, local: SocketAddr) -> io::Result<Result<Page, Fault>> {
        let mut head = Vec::new();
        loop {
            let room = (MAX_HEAD_LEN - head.len()) as u64;
            if (&mut *stream).take(room).read_buf(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(asked) = Page::asked_for(&head, &self.hosts, local).transpose() {
                return Ok(asked);
            }
        }
    }

    async fn answer(&self, page: Page) -> Answer {
        let observation = match self.observe().await {
            Ok(observation) => observation,
            // Whatever it says, it turns.
            Err(NoObservation { loop_turns: true, .. }) if page == Page::Live => return Answer::alive(),
            Err(NoObservation { why, .. }) => return Answer::new(503, why + "\n"),
        };
        if page == Page::Live {
            return Answer::alive();
        }
        let surroundings = match self.surroundings(&observation).await {
            Ok(surroundings) => surroundings,
            Err(error) => {
                return Answer::new(503, format!("the kernel does not tell of its interfaces: {error}\n"));
            }
        };
        if page == Page::Metrics {
            return Answer::new(200, observation.expose(&surroundings));
        }
        match &readiness::obstacles(&observation, &surroundings)[..] {
            [] => Answer::new(200, "ready\n"),
            obstacles => Answer::new(503, obstacles.join("\n") + "\n"),
        }
    }

    async fn observe(&self) -> Result<Observation, NoObservation> {
        let (observer, observation) = oneshot::channel();
        let ask = async {
            self.driver.send(observer).await.ok()?;
            observation.await.ok()
        };
        match timeout(PATIENCE, ask).await {
            Ok(Some(answer)) => answer.map_err(|why| NoObservation { why, loop_turns: true }),
            Ok(None) => Err(NoObservation {
                why: "stopping: the relay's loop has ended".to_owned(),
                loop_turns: false,
            }),
            Err(_) => {
                let why = format!("the relay's loop has not answered for {} s", PATIENCE.as_secs());
                Err(NoObservation { why, loop_turns: false })
            }
        }
    }

    async fn surroundings(&self, observation: &Observation) -> io::Result<Surroundings> {
        let interfaces = observation.path.interfaces.clone();
        let counting = spawn_blocking(move || interface_counts::of(&interfaces));
        let interfaces = timeout(PATIENCE, counting).await???;
        Ok(Surroundings { start_time_s: self.start_time_s, interfaces, requests: self.requests.all() })
    }

    fn refusal(&self, fault: Fault, local: SocketAddr) -> Answer {
        match fault {
            Fault::Malformed => Answer::new(400, "not an HTTP/1.1 request with one Host field\n"),
            Fault::TooLarge => Answer::new(431, format!("a request may have {MAX_HEAD_LEN} bytes\n")),
            Fault::Method => Answer::new(405, "only GET is answered here\n"),
            Fault::Host => {
                let (local, listen) = (local.to_string(), self.hosts.listen.to_string());
                let names = if local == listen { local } else { format!("{local} or {listen}") };
                Answer::new(
                    421,
                    format!(
                        "this is not the host that was asked for: ask for {names}, or put the name into metrics.hosts\n"
                    ),
                )
            }
            Fault::Path => Answer::new(404, "here are /metrics, /livez and /readyz\n"),
        }
    }
}

/// There is nothing to be said of the relay.
struct NoObservation {
    why: String,
    /// Its loop has answered all the same.
    loop_turns: bool,
}

/// What a request is answered with.
struct Answer {
    code: u16,
    text: String,
}

impl Answer {
    fn new(code: u16, text: impl Into<String>) -> Answer {
        Answer { code, text: text.into() }
    }

    fn alive() -> Answer {
        Answer::new(200, "alive\n")
    }

    /// As it is sent.
    fn bytes(&self) -> Vec<u8> {
        let Answer { code, text } = self;
        let phrase = CODES.iter().find(|(known, _)| known == code).map_or("", |(_, phrase)| phrase);
        let allow = if *code == 405 { "Allow: GET\r\n" } else { "" };
        let len = text.len();
        format!(
            "HTTP/1.1 {code} {phrase}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len}\r\n{allow}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{text}"
        )
        .into_bytes()
    }
}

/// Every status that is answered, with its phrase.
const CODES: [(u16, &str); 8] = [
    (200, "OK"),
    (400, "Bad Request"),
    (404, "Not Found"),
    (405, "Method Not Allowed"),
    (408, "Request Timeout"),
    (421, "Misdirected Request"),
    (431, "Request Header Fields Too Large"),
    (503, "Service Unavailable"),
];

/// How often each of them was answered.
#[derive(Debug, Default)]
struct Requests([AtomicU64; CODES.len()]);

impl Requests {
    fn count(&self, code: u16) {
        let known = CODES.iter().zip(&self.0).find(|((known, _), _)| *known == code);
        if let Some((_, counter)) = known {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn all(&self) -> Vec<(u16, u64)> {
        CODES
            .iter()
            .zip(&self.0)
            .map(|((code, _), counter)| (*code, counter.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint whose driver does what `drive` says, and where it is.
    async fn endpoint(mut drive: impl FnMut(Observer) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let hosts = Hosts { listen: address.to_string().parse().unwrap(), more: Vec::new() };
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (driver, mut observers) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(observer) = observers.recv().await {
                drive(observer);
            }
        });
        tokio::spawn(Endpoint { listener, address, hosts, start_time_s: 1.5 }.serve(driver));
        address
    }

    async fn say(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(at: SocketAddr, path: &str) -> String {
        say(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n")).await
    }

    fn answer(observer: Observer) {
        let _gone = observer.send(Ok(Observation::example()));
    }

    #[tokio::test]
    async fn metrics_are_served_with_their_type_and_length_and_what_is_refused_is_counted() {
        let at = endpoint(answer).await;
        let refused = say(at, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
        assert!(refused.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{refused}");
        assert!(refused.contains("metrics.hosts"), "{refused}");
        assert_eq!(refused.matches(&at.to_string()).count(), 1, "{refused}");
        let refused =
            say(at, &format!("POST /metrics HTTP/1.1\r\nHost: {at}\r\nContent-Length: 1\r\n\r\nx")).await;
        assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("\r\nAllow: GET\r\n"), "{refused}");
        let metrics = get(at, "/metrics").await;
        let (head, text) = metrics.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", text.len())), "{head}");
        for line in [
            "process_start_time_seconds 1.5",
            "atlas_relay_http_requests_total{code=\"421\"} 1",
            "atlas_relay_http_requests_total{code=\"405\"} 1",
        ] {
            assert!(text.lines().any(|is| is == line), "{line}: {text}");
        }
    }

    #[tokio::test]
    async fn a_relay_that_drains_lives_but_is_not_ready() {
        let at = endpoint(|observer| {
            let _gone = observer.send(Ok(Observation { draining: Some(2), ..Observation::example() }));
        })
        .await;
        assert!(get(at, "/livez").await.starts_with("HTTP/1.1 200 "));
        let ready = get(at, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("draining"), "{ready}");
    }

    #[tokio::test]
    async fn counters_that_cannot_be_read_are_no_death() {
        let at = endpoint(|observer| {
            let _gone = observer.send(Err("the counters cannot be read".to_owned()));
        })
        .await;
        assert!(get(at, "/livez").await.starts_with("HTTP/1.1 200 "));
        for path in ["/readyz", "/metrics"] {
            let answer = get(at, path).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("cannot be read"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_neither_alive_nor_ready() {
        let mut kept = Vec::new();
        let at = endpoint(move |observer| kept.push(observer)).await;
        for path in ["/livez", "/readyz", "/metrics"] {
            let answer = get(at, path).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("has not answered"), "{answer}");
        }
    }

    #[tokio::test]
    async fn who_does_not_ask_holds_a_place_for_so_long_only_and_no_more_than_there_are() {
        let at = endpoint(answer).await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        // It waits until one of them is given up.
        let served = get(at, "/livez").await;
        assert!(served.starts_with("HTTP/1.1 200 "), "{served}");
        let mut told = String::new();
        silent.remove(0).read_to_string(&mut told).await.unwrap();
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    }
}
