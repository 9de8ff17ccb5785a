//! The greeting in Rust with its standard library, which has threads but no epoll:
//! peer listen|accepted|inet
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::io::FromRawFd;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(5);

fn serve(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    let end = Instant::now() + DEADLINE;
    stream.write_all(line.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = [0; 4096];
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        stream.set_read_timeout(Some(left))?;
        if stream.read(&mut rest)? == 0 {
            break;
        }
    }
    Ok(())
}

fn main() {
    // A client that has gone away, or whose time is up, is normal: so much for the errors of serve.
    match std::env::args().nth(1).as_deref() {
        Some("accepted") => {
            let stream = unsafe { TcpStream::from_raw_fd(3) };
            let _ = serve(stream, "This socket was already accepted\n");
        }
        Some("inet") => {
            let stream = unsafe { TcpStream::from_raw_fd(0) };
            let _ = serve(stream, "This socket was passed on stdin/stdout\n");
        }
        _ => {
            let listener = unsafe { TcpListener::from_raw_fd(3) };
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                std::thread::spawn(move || serve(stream, "This is a test\n"));
            }
        }
    }
}
