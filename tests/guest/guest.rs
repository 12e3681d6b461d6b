//! A program that runs inside test containers and does on request what servers do: print much, wait
//! before it is ready, read commands, eat memory, refuse to stop. It uses the standard library only
//! and is linked statically, so it needs nothing from its image.

use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::thread::sleep;
use std::time::Duration;

const USAGE: &str = "verbs, several separated by --:
  lines N [LENGTH]         N numbered lines, each filled up to LENGTH bytes
  flood N                  N MiB without a line feed
  echo                     prints `got: LINE` for each line of input, until its end
  prompt [TEXT]            prints TEXT (`> `) without a line feed
  say TEXT                 prints TEXT and a line feed
  complain TEXT            the same on standard error
  ready-after MS TEXT      waits, then prints TEXT
  wait MS                  does nothing for so long
  forever                  does nothing until it is killed
  trap-term exit|ignore    says how it took SIGTERM, and ends or not
  exit CODE
  serve PORT               answers every connection and datagram with what it got, and `hello` to HTTP
  connect HOST:PORT MS     exits with 0 if a connection is made in time, 1 if refused, 2 if nothing comes
  alloc MIB                takes and uses memory, then does nothing
  write PATH [MIB]         writes a file
  swap NAME TARGET         makes the folder NAME a link to TARGET and back, without end
  fork N                   starts N processes that do nothing, says how many it got";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        fail(USAGE);
    }
    for verb in arguments.split(|argument| argument == "--") {
        let verb: Vec<&str> = verb.iter().map(String::as_str).collect();
        run(&verb);
    }
}

fn run(verb: &[&str]) {
    match *verb {
        ["lines", count] => lines(number(count), 0),
        ["lines", count, length] => lines(number(count), number(length)),
        ["flood", mib] => flood(number(mib)),
        ["echo"] => echo(),
        ["prompt"] => print("> "),
        ["prompt", text] => print(text),
        ["say", text] => print(&format!("{text}\n")),
        ["complain", text] => eprintln!("{text}"),
        ["ready-after", ms, text] => {
            sleep(Duration::from_millis(number(ms)));
            print(&format!("{text}\n"));
        }
        ["wait", ms] => sleep(Duration::from_millis(number(ms))),
        ["forever"] => forever(),
        // The standard library has no signals; the shell does.
        ["trap-term", how] => fail(&Command::new("/bin/trap-term").arg(how).exec().to_string()),
        ["exit", code] => exit(code.parse().unwrap_or_else(|_| fail(USAGE))),
        ["serve", port] => serve(port),
        ["connect", address, ms] => connect(address, Duration::from_millis(number(ms))),
        ["alloc", mib] => alloc(number(mib)),
        ["write", path] => write(path, 0),
        ["write", path, mib] => write(path, number(mib)),
        ["swap", name, target] => swap(name, target),
        ["fork", count] => fork(number(count)),
        _ => fail(USAGE),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    exit(64)
}

fn swap(name: &str, target: &str) -> ! {
    let (folder, link) = (format!("{name}.folder"), format!("{name}.link"));
    std::os::unix::fs::symlink(target, &link).expect("a link");
    // Others take things away in between: each step is tried again from what there is.
    loop {
        let steps = [(name, &*folder), (&*link, name), (name, &*link), (&*folder, name)];
        for (from, to) in steps {
            drop(std::fs::rename(from, to));
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| fail(USAGE))
}

fn forever() -> ! {
    loop {
        sleep(Duration::from_secs(3600));
    }
}

fn print(text: &str) {
    let mut out = std::io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written {
        fail(&error.to_string());
    }
}

fn lines(count: u64, length: u64) {
    let mut out = std::io::BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let fill = "x".repeat(length as usize);
    for n in 1..=count {
        let head = format!("line {n} ");
        let rest = fill.get(head.len()..).unwrap_or("");
        if writeln!(out, "{head}{rest}").is_err() {
            exit(1);
        }
    }
}

fn flood(mib: u64) {
    let piece = vec![b'.'; 1 << 20];
    let mut out = std::io::stdout().lock();
    for _ in 0..mib {
        if out.write_all(&piece).is_err() {
            exit(1);
        }
    }
}

fn echo() {
    for line in std::io::stdin().lock().lines() {
        match line {
            Ok(line) => print(&format!("got: {line}\n")),
            Err(error) => fail(&error.to_string()),
        }
    }
}

fn serve(port: &str) -> ! {
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))
        .unwrap_or_else(|error| fail(&format!("cannot listen: {error}")));
    let datagrams = UdpSocket::bind(format!("0.0.0.0:{port}"))
        .unwrap_or_else(|error| fail(&format!("cannot take datagrams: {error}")));
    std::thread::spawn(move || answer_datagrams(&datagrams));
    print(&format!("listening on {port}\n"));
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || answer(stream));
    }
    fail("the listener ended")
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    // An error is of an answer that nobody took.
    loop {
        if let Ok((read, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..read], from));
        }
    }
}

fn answer(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        let got = &buffer[..read];
        if got.starts_with(b"GET ") {
            let page = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            drop(stream.write_all(page));
            return;
        }
        if stream.write_all(got).is_err() {
            return;
        }
    }
}

fn connect(address: &str, limit: Duration) -> ! {
    let address = address.parse().unwrap_or_else(|_| fail(USAGE));
    match TcpStream::connect_timeout(&address, limit) {
        Ok(_) => exit(0),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => exit(2),
        Err(error) => {
            eprintln!("{error}");
            exit(1)
        }
    }
}

fn alloc(mib: u64) -> ! {
    let mut kept = Vec::new();
    for n in 1..=mib {
        // Not zeros: those would be one shared page.
        kept.push(vec![(n % 255) as u8 + 1; 1 << 20]);
    }
    print(&format!("took {mib} MiB\n"));
    forever()
}

fn write(path: &str, mib: u64) {
    let piece = vec![b'w'; 1 << 20];
    let written = std::fs::File::create(path).and_then(|mut file| {
        file.write_all(b"written\n")?;
        (0..mib).try_for_each(|_| file.write_all(&piece))
    });
    match written {
        Ok(()) => print(&format!("wrote {path}\n")),
        Err(error) => print(&format!("cannot write {path}: {error}\n")),
    }
}

fn fork(count: u64) -> ! {
    let started = (0..count)
        .take_while(|_| Command::new("/bin/guest").arg("forever").spawn().is_ok())
        .count();
    print(&format!("forked {started}\n"));
    forever()
}
