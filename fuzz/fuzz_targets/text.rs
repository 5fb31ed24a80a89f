//! Printed commands parse back; any text is parsed or refused.
#![no_main]

use ecmdq_engine::Command;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(words) = data.first_chunk::<16>() {
        let (low, high) = words.split_at(8);
        let word = |half: &[u8]| half.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let command = Command([word(low), word(high)]);
        assert_eq!(command.to_string().parse(), Ok(command));
    }
    if let Ok(command) = String::from_utf8_lossy(data).parse::<Command>() {
        assert_eq!(command.to_string().parse(), Ok(command));
    }
});
