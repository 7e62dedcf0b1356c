//! Facts about this process and machine, for results and defaults. Zero or empty where unknown.

use std::fs;
use std::sync::LazyLock;

fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Memory that this process may use: the machine's, or its control group's limit where lower.
pub(crate) fn memory_total() -> Option<u64> {
    let machine = kilobytes("/proc/meminfo", "MemTotal:");
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    match (machine, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The peak resident set of this process.
pub(crate) fn peak_memory() -> u64 {
    kilobytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// The resident set of this process.
pub(crate) fn resident_memory() -> u64 {
    kilobytes("/proc/self/status", "VmRSS:").unwrap_or(0)
}

pub(crate) fn host() -> String {
    static HOST: LazyLock<String> = LazyLock::new(|| {
        let name = fs::read_to_string("/proc/sys/kernel/hostname");
        name.map(|s| s.trim().to_owned()).unwrap_or_default()
    });
    HOST.clone()
}
