//! A server to forward to.

use std::net::SocketAddr;

use tokio::net::TcpListener;

/// A TCP server that sends back what it gets.
pub async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _client_gone = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}
