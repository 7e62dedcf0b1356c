//! Inputs near to valid ones: bytes flipped, cut, spliced and grown; JSON by its tokens; the binary
//! envelope with its length and checksum mended, so that the payload's decoder is reached; frames.

use crate::rng::Rng;

const INTERESTING: &[u64] = &[
    0,
    1,
    7,
    8,
    0x7f,
    0x80,
    0xfa,
    0xfb,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1000_0000,
    0x1000_0001,
    1 << 32,
    1 << 40,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

const LIMIT: usize = 64 << 10;

/// Change bytes in a few places; `other` is material to splice in.
pub fn bytes(rng: &mut Rng, data: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(data.len());
        match rng.below(12) {
            0 | 1 if !data.is_empty() => data[at] ^= 1 << rng.below(8),
            2 if !data.is_empty() => data[at] = rng.next() as u8,
            3 => data.truncate(at),
            4 => {
                let end = (at + 1 + rng.below(16)).min(data.len());
                data.drain(at..end);
            }
            5 => {
                let new: Vec<u8> = (0..rng.below(16)).map(|_| rng.next() as u8).collect();
                data.splice(at..at, new);
            }
            6 if !data.is_empty() => {
                let end = (at + 1 + rng.below(64)).min(data.len());
                let part = data[at..end].to_vec();
                let to = rng.below(data.len());
                data.splice(to..to, part);
            }
            7 => {
                let from = rng.below(other.len());
                let end = (from + rng.below(128)).min(other.len());
                let over = (at + rng.below(128)).min(data.len());
                data.splice(at..over, other[from..end].iter().copied());
            }
            8..=10 => {
                // A number as lengths, counts and offsets are written.
                let width = 1 << rng.below(4);
                let at = if rng.one_in(2) { at & !(width - 1) } else { at };
                let value = rng.pick(INTERESTING).wrapping_add(rng.below(3) as u64).to_le_bytes();
                let end = (at + width).min(data.len());
                data[at..end].copy_from_slice(&value[..end - at]);
            }
            _ => {
                // bincode: a marker, and the integer that it announces.
                let value = rng.pick(INTERESTING).to_le_bytes();
                let (marker, width) = *rng.pick(&[(251u8, 2), (252, 4), (253, 8), (254, 8)]);
                let mut new = vec![marker];
                new.extend_from_slice(&value[..width]);
                let over = (at + rng.below(10)).min(data.len());
                data.splice(at..over, new);
            }
        }
        data.truncate(LIMIT);
    }
}

/// The parts of a binary envelope: where its length begins, and its payload.
fn envelope(data: &[u8]) -> Option<(usize, usize)> {
    let mut at = 6;
    for _ in 0..3 {
        at += 1 + usize::from(*data.get(at)?);
    }
    (data.starts_with(b"LTSK") && data.len() >= at + 12).then_some((at, at + 12))
}

fn seal(data: &mut [u8], length: usize, payload: usize) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&data[..length + 8]);
    crc.update(&data[payload..]);
    data[length + 8..payload].copy_from_slice(&crc.finalize().to_le_bytes());
}

/// Change a binary descriptor: the payload, or a part of the header, with the checksum mended mostly.
pub fn descriptor(rng: &mut Rng, data: &mut Vec<u8>, other: &[u8]) {
    let Some((length, payload)) = envelope(data) else { return bytes(rng, data, other) };
    match rng.below(10) {
        0 => return bytes(rng, data, other),
        1 => {
            // The header's own fields.
            let at = 4 + rng.below(length + 8 - 4);
            data[at] = rng.next() as u8;
            if let Some((length, payload)) = envelope(data) {
                seal(data, length, payload);
            }
            return;
        }
        2 => {
            let stated = rng.pick(INTERESTING).to_le_bytes();
            data[length..length + 8].copy_from_slice(&stated);
            return seal(data, length, payload);
        }
        _ => {}
    }
    let mut body = data.split_off(payload);
    let from = envelope(other).map_or(0, |(_, payload)| payload);
    bytes(rng, &mut body, &other[from..]);
    let stated = (body.len() as u64).to_le_bytes();
    data.extend_from_slice(&body);
    if !rng.one_in(16) {
        data[length..length + 8].copy_from_slice(&stated);
    }
    if !rng.one_in(32) {
        seal(data, length, payload);
    }
}

/// Where the tokens of a JSON text begin and end.
fn tokens(text: &[u8]) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let begin = at;
        match text[at] {
            b' ' | b'\n' | b'\t' | b'\r' => {
                at += 1;
                continue;
            }
            b'"' => {
                at += 1;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(text.len());
            }
            c if c.is_ascii_alphanumeric() || c == b'-' => {
                while at < text.len()
                    && (text[at].is_ascii_alphanumeric() || b"+-.".contains(&text[at]))
                {
                    at += 1;
                }
            }
            _ => at += 1,
        }
        out.push((begin, at));
    }
    out
}

const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-1",
    "-0",
    "1",
    "255",
    "256",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e309",
    "-1e999999999",
    "1E400",
    "0.1",
    "1.7976931348623157e308",
    "5e-324",
    "1e-999999",
    "123456789012345678901234567890123456789012345678901234567890",
    "\"\"",
    "\"x\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\x\"",
    "\"s3://user:secret@bucket/x\"",
    "\"../canary\"",
    "\"=\"",
    "\"AAAA\"",
    "\"/////w==\"",
    "[]",
    "{}",
    "[null]",
    "[[[]]]",
    "{\"\":{}}",
    "NaN",
    "Infinity",
    "01",
    "+1",
    ".5",
    "1.",
    "'x'",
    "// x\n",
    "\u{feff}",
];

/// Change a JSON text by its tokens.
pub fn json(rng: &mut Rng, text: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(3) {
        let tokens = tokens(text);
        if tokens.is_empty() {
            return bytes(rng, text, other);
        }
        let (begin, end) = *rng.pick(&tokens);
        match rng.below(15) {
            0 if text[begin] == b'"' && end - begin > 40 => base64(rng, text, begin + 1, end - 1),
            0..=3 => {
                let value = rng.pick(VALUES).as_bytes().to_vec();
                text.splice(begin..end, value);
            }
            4 => {
                text.drain(begin..end);
            }
            5 => {
                // A run of tokens again: repeated keys, or broken structure.
                let from = rng.below(tokens.len());
                let to = (from + 1 + rng.below(12)).min(tokens.len());
                let part = text[tokens[from].0..tokens[to - 1].1].to_vec();
                let part = [b", ".as_slice(), &part].concat();
                text.splice(end..end, part);
            }
            6 => repeat_key(rng, text, &tokens),
            7 => {
                // Deep nesting, closed or not.
                let depth = *rng.pick(&[10, 100, 127, 128, 129, 1000, 10_000]);
                let (open, close) = *rng.pick(&[("[", "]"), ("{\"a\":", "}"), ("[{\"\":", "}]")]);
                let mut new = open.repeat(depth).into_bytes();
                new.extend_from_slice(b"0");
                if !rng.one_in(3) {
                    new.extend(close.repeat(depth).bytes());
                }
                text.splice(begin..end, new);
            }
            8 => {
                let bad: &[&[u8]] =
                    &[b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0", b"\x1f"];
                let bad = rng.pick(bad).to_vec();
                let at = begin + rng.below(end - begin + 1);
                text.splice(at..at, bad);
            }
            9 => {
                let long = "a".repeat(1 << rng.below(16));
                text.splice(begin..end, format!("\"{long}\"").into_bytes());
            }
            10 => {
                let digits = "9".repeat(1 + rng.below(400));
                let dot = if rng.one_in(2) { "" } else { "." };
                text.splice(begin..end, format!("1{dot}{digits}").into_bytes());
            }
            11 => {
                // A value of another place.
                let (from, to) = *rng.pick(&tokens);
                let part = text[from..to].to_vec();
                text.splice(begin..end, part);
            }
            12 => {
                let theirs = self::tokens(other);
                if !theirs.is_empty() {
                    let (from, to) = *rng.pick(&theirs);
                    text.splice(begin..end, other[from..to].iter().copied());
                }
            }
            _ => bytes(rng, text, other),
        }
        text.truncate(LIMIT * 4);
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Change what stands in base64 (schemas as Arrow IPC bytes), where it is that.
fn base64(rng: &mut Rng, text: &mut Vec<u8>, begin: usize, end: usize) {
    let digits = text[begin..end].iter().filter(|c| **c != b'=');
    let Some(digits) =
        digits.map(|c| ALPHABET.iter().position(|a| a == c)).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let mut data: Vec<u8> = digits
        .chunks(4)
        .flat_map(|c| {
            let bits = c.iter().fold(0, |a, d| a << 6 | *d as u32) << (6 * (4 - c.len()));
            bits.to_be_bytes()[1..].iter().copied().take(c.len() * 3 / 4).collect::<Vec<_>>()
        })
        .collect();
    bytes(rng, &mut data, &[]);
    let encoded = data.chunks(3).flat_map(|c| {
        let mut word = [0; 4];
        word[1..=c.len()].copy_from_slice(c);
        let bits = u32::from_be_bytes(word);
        (0..4).map(move |i| match i {
            i if i > c.len() => b'=',
            i => ALPHABET[(bits >> (18 - 6 * i) & 63) as usize],
        })
    });
    let encoded: Vec<u8> = encoded.collect();
    text.splice(begin..end, encoded);
}

/// `"key": <token>,` once more in front of a key.
fn repeat_key(rng: &mut Rng, text: &mut Vec<u8>, tokens: &[(usize, usize)]) {
    let keys: Vec<usize> =
        (1..tokens.len()).filter(|i| text[tokens[*i].0] == b':').map(|i| i - 1).collect();
    if keys.is_empty() {
        return;
    }
    let (begin, end) = tokens[*rng.pick(&keys)];
    let value = rng.pick(VALUES);
    let mut new = text[begin..end].to_vec();
    new.extend_from_slice(format!(": {value}, ").as_bytes());
    text.splice(begin..begin, new);
}

/// Items, each behind its length.
pub fn frame(items: &[Vec<u8>]) -> Vec<u8> {
    items.iter().flat_map(|i| [&(i.len() as u64).to_le_bytes(), i.as_slice()].concat()).collect()
}

/// The same with a fault: a false length, or cut short.
pub fn false_frame(rng: &mut Rng, items: &[Vec<u8>]) -> Vec<u8> {
    let mut out = frame(items);
    let before = &items[..rng.below(items.len())];
    let at = before.iter().map(|i| i.len() + 8).sum::<usize>();
    if rng.one_in(3) || out.len() < at + 8 {
        let at = rng.below(out.len());
        out.truncate(at);
    } else {
        let len = rng.pick(INTERESTING).wrapping_sub(rng.below(9) as u64);
        out[at..at + 8].copy_from_slice(&len.to_le_bytes());
    }
    out
}

/// The items of an unharmed frame.
pub fn unframe(mut framed: &[u8]) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    while let Some((len, rest)) = framed.split_first_chunk::<8>() {
        let Some((item, rest)) = rest.split_at_checked(u64::from_le_bytes(*len) as usize) else {
            break;
        };
        items.push(item.to_vec());
        framed = rest;
    }
    items
}

/// Two parts as one input, and back.
pub fn join(first: &[u8], second: &[u8]) -> Vec<u8> {
    [&(first.len() as u32).to_le_bytes(), first, second].concat()
}

pub fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let Some((len, rest)) = input.split_first_chunk::<4>() else { return (input, &[]) };
    rest.split_at(rest.len().min(u32::from_le_bytes(*len) as usize))
}
