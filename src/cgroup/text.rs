//! What the kernel writes into the files of control groups and devices, understood.
//!
//! Pure; called by the readings of a group. What is not as expected is `None` or counts as nothing.

/// The number behind a name, in files of "name number" lines.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next())??.parse().ok()
    })
}

/// Page cache that could be dropped at once: version 1 counts it with what is below the group.
pub(super) fn inactive_file(text: &str) -> Option<u64> {
    field(text, "total_inactive_file").or_else(|| field(text, "inactive_file"))
}

/// The share of the last ten seconds, from lines such as `some avg10=1.50 avg60=0.00 avg300=0.00 total=99`.
pub(super) fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    average.parse().ok().filter(|share: &f64| share.is_finite())
}

/// Bytes read and written, from lines such as `8:0 Read 4096`.
pub(super) fn block_v1(text: &str) -> (u64, u64) {
    let total = |direction: &str| {
        let amounts = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            (words.next()? == direction).then(|| words.next())??.parse::<u64>().ok()
        });
        amounts.sum()
    };
    (total("Read"), total("Write"))
}

/// Bytes read and written, from lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0`.
pub(super) fn block_v2(text: &str) -> (u64, u64) {
    let total = |key: &str| {
        let words = text.split_ascii_whitespace();
        words.filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
    };
    (total("rbytes="), total("wbytes="))
}

/// Bytes received and sent on all devices but the loopback one, from the text of `net/dev`.
pub(super) fn network_totals(text: &str) -> (u64, u64) {
    let devices = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_ascii_whitespace();
        let received: u64 = numbers.next()?.parse().ok()?;
        let sent: u64 = numbers.nth(7)?.parse().ok()?;
        (name.trim() != "lo").then_some((received, sent))
    });
    devices.fold((0, 0), |total, device| (total.0 + device.0, total.1 + device.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_versions_are_understood() {
        let v1 = "cache 5\ninactive_file 1\ntotal_inactive_file 40960\n";
        assert_eq!(inactive_file(v1), Some(40960));
        assert_eq!(inactive_file("anon 1\nfile 2\ninactive_file 8192\n"), Some(8192));
        assert_eq!(inactive_file("anon 1\n"), None);
        assert_eq!(field("usage_usec 1500\nuser_usec 1000\n", "usage_usec"), Some(1500));
        assert_eq!(field("low 0\noom 3\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(field("oom_kill_disable 1\nunder_oom 0\noom_kill 4\n", "oom_kill"), Some(4));
        let v1 = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:16 Read 1\n8:16 Write 2\nTotal 33\n";
        assert_eq!(block_v1(v1), (11, 22));
        assert_eq!(block_v1("Total 0\n"), (0, 0));
        let psi = "some avg10=1.50 avg60=0.10 avg300=0.00 total=9\nfull avg10=0.00 total=0\n";
        assert_eq!(pressure(psi), Some(1.5));
        assert_eq!(pressure("some avg10=inf\n"), None);
        assert_eq!(pressure("full avg10=1.00 total=0\n"), None);
        let v2 = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2\n";
        assert_eq!(block_v2(v2), (11, 22));
        let devices = "\
Inter-|   Receive                        |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:     999       0    0    0    0     0          0         0      999       0    0    0
  eth0:     200       2    0    0    0     0          0         0      100       1    0    0
  eth1:2000000000       2    0    0    0     0          0         0      1       1    0    0
";
        assert_eq!(network_totals(devices), (2_000_000_200, 101));
    }
}
