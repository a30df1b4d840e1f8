//! Tests of the admin socket.

use serde_json::json;

use super::*;

/// A daemon that answers every question with its name.
async fn echo(mut asked: mpsc::Receiver<Asked>) {
    while let Some(Asked { request, answer }) = asked.recv().await {
        let _asker_gone = answer.send(match request {
            Request::Status => Err("no datapath here".to_owned()),
            other => Ok(json!({ "asked": other })),
        });
    }
}

async fn asking(path: &Path, request: Request) -> Result<Value, AskError> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || ask(&path, request)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_by_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/admin.sock");
    let (sender, receiver) = mpsc::channel(1);
    let socket = AdminSocket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    tokio::spawn(echo(receiver));
    tokio::spawn(socket.serve(sender));
    let answer = asking(&path, Request::Peers).await.unwrap();
    assert_eq!(answer, json!({ "asked": { "request": "peers" } }));
    let refusal = asking(&path, Request::Status).await.unwrap_err();
    assert_eq!(refusal.to_string(), "no datapath here");
}

#[test]
fn requests_name_sessions_and_nodes_as_listings_do() {
    let (session, node) = (SessionId([0xa5; 16]), NodeId::from_bytes([1; 32]));
    for (request, value) in [
        (
            Request::EndSession { session },
            json!({ "request": "end_session", "session": session.to_string() }),
        ),
        (Request::EndSessionsOf { node }, json!({ "request": "end_sessions_of", "node": node.to_string() })),
    ] {
        assert_eq!(serde_json::to_value(&request).unwrap(), value);
        assert_eq!(serde_json::from_value::<Request>(value).unwrap(), request);
    }
    let fault = json!({ "request": "end_session", "session": "a5" });
    let error = serde_json::from_value::<Request>(fault).unwrap_err().to_string();
    assert!(error.contains("32 hexadecimal digits"), "{error}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn nobody_but_owner_and_group_gets_at_the_socket_and_nobody_else_at_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/admin.sock");
    let _socket = AdminSocket::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(mode(&directory.path().join("state")), 0o700);
    assert_eq!(mode(&directory.path().join("state/admin.sock.lock")), 0o600);
    let bare = directory.path().join("bare.sock");
    let _listener = listen(&bare).unwrap();
    assert_eq!(mode(&bare) & !SOCKET_MODE, 0, "before anything else is done to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_answered_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let (sender, _receiver) = mpsc::channel(1);
    tokio::spawn(AdminSocket::bind(&path).unwrap().serve(sender));
    for line in ["{\"request\":\"reboot\"}\n".to_owned(), "x".repeat(100_000)] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        // The daemon may hang up on a long line before it is written whole.
        let _hung_up = stream.write_all(line.as_bytes()).await;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await.unwrap_or_default();
        assert!(answer.is_empty() || answer.starts_with("{\"error\":\"not a request"), "{answer}");
    }
}

#[test]
fn who_is_refused_before_the_question_is_read_hears_why() {
    let (asker, mut daemon) = std::os::unix::net::UnixStream::pair().unwrap();
    let refusal = as_line(&Answer::Error("too many are asking".to_owned())).unwrap();
    daemon.write_all(&refusal).unwrap();
    drop(daemon);
    assert_eq!(exchange(asker, "a question\n", Instant::now() + PATIENCE).unwrap(), refusal);
}

#[test]
fn an_answer_that_does_not_end_is_given_up_however_often_some_of_it_comes() {
    let (asker, mut daemon) = std::os::unix::net::UnixStream::pair().unwrap();
    let dripping = std::thread::spawn(move || {
        while daemon.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let given_up = exchange(asker, "a question\n", Instant::now() + Duration::from_millis(100)).unwrap_err();
    assert!(matches!(given_up.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{given_up}");
    dripping.join().unwrap();
}

#[tokio::test]
async fn one_path_belongs_to_one_daemon_and_a_dead_ones_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let first = AdminSocket::bind(&path).unwrap();
    assert!(matches!(AdminSocket::bind(&path), Err(BindError::Taken { .. })));
    drop(first);
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    AdminSocket::bind(&path).unwrap();
}

#[test]
fn without_a_daemon_the_error_says_where_one_may_be_and_to_start_one_only_where_that_helps() {
    let session = SessionId([0; 16]);
    for (request, start) in [
        (Request::Peers, true),
        (Request::Status, true),
        (Request::Stop, false),
        (Request::Drain { deadline_s: None, hint: None }, false),
        (Request::Bans, false),
        (Request::Reload, false),
        (Request::EndSession { session }, false),
    ] {
        let error = ask(Path::new("/nonexistent/admin.sock"), request).unwrap_err().to_string();
        assert!(error.contains("ATLAS_ROOT") && error.contains("sudo -u atlas-relay"), "{error}");
        assert_eq!(error.contains("net listen"), start, "{error}");
    }
}
