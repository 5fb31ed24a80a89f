//! `ecmdq decode` and `ecmdq translate`.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn ecmdq(arguments: &[&str], commands: &[[u64; 2]]) -> Output {
    let bytes: Vec<u8> = commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    piped(arguments, &bytes)
}

fn piped(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ecmdq"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading, if its options are wrong.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn decode_prints_index_words_name_and_fields() {
    let output = ecmdq(&["decode", "-"], &[[0x0005_0000_0000_0011, 0], [0x04, 0x1f], [0x7f, 1]]);
    assert!(output.status.success());
    assert_eq!(
        stdout(&output),
        "      0  0005000000000011 0000000000000000  TLBI_NH_ASID VMID=0x0 ASID=0x5\n\
         \x20     1  0000000000000004 000000000000001f  CFGI_ALL\n\
         \x20     2  000000000000007f 0000000000000001  0x7f RES0=0x0:0x1\n"
    );
}

#[test]
fn translate_says_where_each_command_goes() {
    let commands = [
        [0x0005_0000_0000_0012, 0x1001],
        [0x30, 0],
        [0x0000_0042_0000_0005, 1],
        [0x0000_0043_0000_0005, 1],
        [0x0000_0042_0000_0003, 1],
        [0x0000_0042_0000_0001, 0],
        [0x2046, 0],
    ];
    let output = ecmdq(&["translate", "--vmid", "7", "--stream", "0x42=0x100", "-"], &commands);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stdout(&output),
        "      0  TLBI_NH_VA        host        0x0005000700000012 0x0000000000001001\n\
         \x20     1  TLBI_NSNH_ALL     host        0x0000000700000010 0x0000000000000000\n\
         \x20     2  CFGI_CD           host        0x0000010000000005 0x0000000000000001\n\
         \x20     3  CFGI_CD           none        no such stream or substream, or no ATS\n\
         \x20     4  CFGI_STE          vsmmu\n\
         \x20     5  PREFETCH_CONFIG   none\n\
         \x20     6  CMD_SYNC          sync\n"
    );
}

#[test]
fn a_rejected_command_has_a_reason_and_status_3() {
    let output =
        ecmdq(&["translate", "-"], &[[0x3046, 0], [0x0000_0042_0000_0403, 0], [0x110, 0], [0x7f, 0]]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        stdout(&output),
        "      0  CMD_SYNC          CERROR_ILL  CS=0x3\n\
         \x20     1  CFGI_STE          CERROR_ILL  SSec=0x1\n\
         \x20     2  TLBI_NH_ALL       CERROR_ILL  reserved bits 0x100 in word 0, 0x0 in word 1\n\
         \x20     3  0x7f              CERROR_ILL  not a command of this SMMU\n"
    );
}

#[test]
fn json_is_an_object_a_line() {
    let range = [0x0005_0000_0000_1012, 0x1700];
    let output = ecmdq(&["translate", "--json", "-"], &[range, [0x3046, 0]]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        stdout(&output),
        concat!(
            r#"{"index":0,"raw":["0x0005000000001012","0x0000000000001700"],"name":"TLBI_NH_VA","verdict":"host","#,
            r#""reason":null,"canonical":["0x0005000100001012","0x0000000000001700"]}"#,
            "\n",
            r#"{"index":1,"raw":["0x0000000000003046","0x0000000000000000"],"name":"CMD_SYNC","verdict":"CERROR_ILL","#,
            r#""reason":"CS=0x3","canonical":null}"#,
            "\n"
        )
    );
    let output = ecmdq(&["translate", "--json", "--host", "idr3=0", "-"], &[range]);
    let canonical = r#""canonical":[["0x0005000100000012","0x0000000000001000"],["0x0005000100000012","0x0000000000002000"]]"#;
    assert!(stdout(&output).contains(canonical), "{}", stdout(&output));
}

#[test]
fn raw_is_the_canonical_bytes_alone() {
    let output = ecmdq(&["translate", "--raw", "-"], &[[0x30, 0], [0x2046, 0], [0x0005_0000_0000_0011, 0]]);
    let expected = [[0x1_0000_0010_u64, 0], [0x0005_0001_0000_0011, 0]];
    let expected: Vec<u8> = expected.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(output.stdout, expected);
}

#[test]
fn features_and_quirks_are_options() {
    let code = |arguments: &[&str], command| ecmdq(arguments, &[command]).status.code();
    let atc_inv = [0x0000_0042_0000_0040, 0x34];
    assert_eq!(code(&["translate", "-"], atc_inv), Some(3), "no ATS by default");
    assert_eq!(code(&["translate", "--guest", "idr0=0x094c341a", "-"], atc_inv), Some(0));
    let one_page = [0x0005_0000_0000_0012, 0x1400];
    assert_eq!(code(&["translate", "-"], one_page), Some(3));
    assert_eq!(code(&["translate", "--quirk", "one-page-range", "-"], one_page), Some(0));
}

#[test]
fn bad_options_and_streams_are_one_line() {
    for (arguments, input, message) in [
        (
            &["decode", "-"][..],
            &[0_u8; 17][..],
            "-: 17 bytes is not a whole number of 16-byte commands: is it cut off?",
        ),
        (&["translate", "--host", "idr0=0", "-"], &[], "--host: the guest is shown S1P=1, the host has 0"),
        (
            &["translate", "--quirk", "none", "-"],
            &[],
            "invalid value 'none' for '--quirk <NAME>': known are: one-page-range",
        ),
        (
            &["translate", "--guest", "idr6=1", "-"],
            &[],
            "invalid value 'idr6=1' for '--guest <IDRs>': 'idr6' is not idr0 to idr5",
        ),
        (
            &["translate", "--stream", "42", "-"],
            &[],
            "invalid value '42' for '--stream <GUEST=HOST>': not GUEST=HOST",
        ),
    ] {
        let output = piped(arguments, input);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("ecmdq: {message}\n"));
    }
}
