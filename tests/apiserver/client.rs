//! The plainest client: one connection a request, everything that came is there to be looked at.

use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use serde_json::Value;
use yurt_net_tests::apiserver::Endpoint;

/// Longer than anything that is to come takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer of which the body is still to be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    /// Of a body whose length was told, what is left of it.
    left: Option<usize>,
}

/// Asks, and reads the head of the answer.
pub(crate) fn ask(http: &Endpoint, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    exchange(PATIENCE, http.address(), path, headers)
}

/// The same of a server in another process.
pub(crate) fn ask_at(address: SocketAddr, path: &str) -> Result<Answer> {
    exchange(PATIENCE, address, path, &[])
}

/// The same, if it comes in time.
pub(crate) fn ask_within(patience: Duration, http: &Endpoint, path: &str) -> Result<Answer> {
    exchange(patience, http.address(), path, &[])
}

fn exchange(
    patience: Duration,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: fake\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{request}\r\n").as_bytes())?;
    let mut stream = BufReader::new(stream);
    let first = head_line(&mut stream)?;
    let status = first.split(' ').nth(1).context("no status")?.parse()?;
    let mut headers = Vec::new();
    loop {
        let line = head_line(&mut stream)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer {
        status,
        headers,
        stream,
        left: None,
    };
    answer.left = answer.header("content-length").parse().ok();
    Ok(answer)
}

fn head_line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("closed before the end of the head");
    }
    Ok(line.trim_end().to_owned())
}

/// The whole body as JSON, whatever the status.
pub(crate) fn json(http: &Endpoint, path: &str) -> Result<(u16, Value)> {
    let mut answer = ask(http, path, &[])?;
    let body = answer.body()?;
    Ok((answer.status, serde_json::from_slice(&body)?))
}

/// Opens a watch.
pub(crate) fn watch(http: &Endpoint, path: &str) -> Result<Answer> {
    let glue = if path.contains('?') { '&' } else { '?' };
    ask(http, &format!("{path}{glue}watch=true"), &[])
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _value)| known == name);
        found.map_or("", |(_name, value)| value)
    }

    /// The next part of the body; `None` at its proper end.
    pub(crate) fn part(&mut self) -> Result<Option<Vec<u8>>> {
        if let Some(left) = self.left {
            let mut part = vec![0; left.min(64 * 1024)];
            if part.is_empty() {
                return Ok(None);
            }
            let length = self.stream.read(&mut part)?;
            if length == 0 {
                bail!("closed {left} bytes before the end of the body");
            }
            part.truncate(length);
            self.left = Some(left - length);
            return Ok(Some(part));
        }
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("closed before the end of the chunks");
        }
        let length = usize::from_str_radix(line.trim(), 16)?;
        let mut part = vec![0; length + 2];
        self.stream.read_exact(&mut part)?;
        part.truncate(length);
        Ok((length > 0).then_some(part))
    }

    /// All of it.
    pub(crate) fn body(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(part) = self.part()? {
            body.extend(part);
        }
        Ok(body)
    }

    /// All that came, and whether it came to its proper end.
    pub(crate) fn body_and_end(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            match self.part() {
                Ok(Some(part)) => body.extend(part),
                Ok(None) => return (body, true),
                Err(_error) => return (body, false),
            }
        }
    }

    /// The next event of a watch: its type, the name and the version of its object.
    pub(crate) fn event(&mut self) -> Result<(String, String, u64)> {
        let event = self.line()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &event["object"]["metadata"];
        let version = text(&metadata["resourceVersion"]).parse().unwrap_or(0);
        Ok((text(&event["type"]), text(&metadata["name"]), version))
    }

    /// The next event of a watch.
    pub(crate) fn line(&mut self) -> Result<Value> {
        let part = self.part()?.context("the watch has ended")?;
        Ok(serde_json::from_slice(&part)?)
    }

    /// Nothing comes for a while.
    pub(crate) fn is_silent(&mut self) -> Result<bool> {
        let socket = self.stream.get_ref();
        socket.set_read_timeout(Some(Duration::from_millis(150)))?;
        let silent = match self.stream.fill_buf() {
            Ok(_some) => false,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        self.stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        Ok(silent)
    }
}
