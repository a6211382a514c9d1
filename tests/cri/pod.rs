//! All there is in the image of the tests' Pods. It is compiled by the tests, with the C library inside: an image has
//! no other file.
//!
//! `pod pause` waits; `pod serve NAME` answers each message on port 8080, TCP and UDP, with its name.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("pause"), None) => loop {
            thread::park();
        },
        (Some("serve"), Some(name)) => serve(&name),
        _ => Err(io::Error::other("pause, or serve NAME")),
    }
}

fn serve(name: &str) -> io::Result<()> {
    let udp = UdpSocket::bind("[::]:8080")?;
    let tcp = TcpListener::bind("[::]:8080")?;
    let mut message = [0; 64];
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in tcp.incoming().flatten() {
                // Whoever has gone is not answered.
                scope.spawn(move || answer(stream, name));
            }
        });
        loop {
            let (_, from) = udp.recv_from(&mut message)?;
            let _gone = udp.send_to(name.as_bytes(), from);
        }
    })
}

fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let mut message = [0; 64];
    while stream.read(&mut message)? > 0 {
        stream.write_all(name.as_bytes())?;
    }
    Ok(())
}
