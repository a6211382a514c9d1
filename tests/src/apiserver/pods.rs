//! The list of Pods that YurtHub serves beside its API.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

/// Where YurtHub lists Pods, whatever port its API is on.
const PODS_PORT: u16 = 10267;

/// A server of `/pods`, like YurtHub's.
pub struct PodsServer {
    /// `None`: it does not serve such a list.
    pods: Arc<Mutex<Option<Vec<Value>>>>,
}

impl PodsServer {
    /// Serves on YurtHub's port of this address, until the process ends. The list is empty at first.
    pub fn start(address: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, PODS_PORT))?;
        let pods: Arc<Mutex<Option<Vec<Value>>>> = Arc::default();
        let served = Arc::clone(&pods);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut lines = BufReader::new(&stream).lines();
                let first = lines.next().and_then(Result::ok).unwrap_or_default();
                while lines
                    .next()
                    .is_some_and(|line| line.is_ok_and(|l| !l.is_empty()))
                {}
                drop(lines);
                let items = served
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let items = items.filter(|_| first.starts_with("GET /pods "));
                let list = |items| json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
                let (status, body) = match items {
                    Some(items) => ("200 OK", list(items).to_string()),
                    None => ("404 Not Found", String::new()),
                };
                // A client that has gone gets no answer.
                let _gone = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Ok(Self { pods })
    }

    /// Sets the Pods in the list.
    pub fn set(&self, pods: &[Value]) {
        *self.pods.lock().unwrap_or_else(PoisonError::into_inner) = Some(pods.to_vec());
    }
}
