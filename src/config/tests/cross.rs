//! Rules between values, and between files: names, addresses, disks, options that depend on others.

use super::*;

/// The sample as another resource with nothing in common with the first.
fn second() -> String {
    SAMPLE
        .replace("name = \"r0\"", "name = \"r1\"")
        .replace("r0.img", "r1.img")
        .replace("r0.sock", "r1.sock")
}

fn refusal_of_two(first: &str, second: &str) -> String {
    let files = [("a.toml", first), ("b.toml", second)];
    load_files(&files, "alpha").expect_err("a refusal")
}

#[test]
fn two_files_two_resources_sorted_by_name() {
    let config = load_files(&[("a.toml", &second()), ("b.toml", SAMPLE)], "alpha").unwrap();
    let names: Vec<&str> = config.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["r0", "r1"]);
}

#[test]
fn one_bad_file_does_not_hide_the_others_errors() {
    let text = refusal_of_two("= broken", &second().replace("id = 0", "id = 99"));
    assert!(text.contains("a.toml:1:1: "), "{text}");
    assert!(text.contains("b.toml:8:6: `id` must be"), "{text}");
}

#[test]
fn duplicates_within_a_resource() {
    let text = refusal(&sample_with("id = 1", "id = 0"));
    assert!(
        text.contains("id 0 is already used by node `alpha`"),
        "{text}"
    );
    assert!(text.contains("first used at r0.toml:8:6"), "{text}");
    let text = refusal(&sample_with("127.0.0.2:7789", "127.0.0.1"));
    assert!(
        text.contains("address `127.0.0.1:7789` is already used by node `alpha`"),
        "{text}"
    );
}

#[test]
fn a_device_belongs_to_one_resource_of_a_node() {
    let with = |text: &str, device: &str| {
        text.replace("id = 0", &format!("id = 0\ndevice = \"{device}\""))
            .replace("id = 1", &format!("id = 1\ndevice = \"{device}\""))
    };
    let text = refusal_of_two(&with(SAMPLE, "/dev/nbd1"), &with(&second(), "/dev/nbd1"));
    let words = "device `/dev/nbd1` on node `alpha` is already used";
    assert!(text.contains(words), "{text}");
    for (a, b) in [("/dev/nbd1", "/dev/nbd2"), ("auto", "auto")] {
        let (a, b) = (with(SAMPLE, a), with(&second(), b));
        load_files(&[("a.toml", &a), ("b.toml", &b)], "alpha").expect("two devices");
    }
}

#[test]
fn duplicates_across_files() {
    let text = refusal_of_two(SAMPLE, &second().replace("\"r1\"", "\"r0\""));
    assert!(text.contains("resource `r0` is already used"), "{text}");
    let text = refusal_of_two(SAMPLE, &second().replacen("r1.img", "r0.img", 1));
    assert!(
        text.contains("`/srv/alpha/r0.img` on node `alpha` is already used"),
        "{text}"
    );
    let text = refusal_of_two(SAMPLE, &second().replacen("r1.sock", "r0.sock", 1));
    assert!(
        text.contains("export `unix:/run/twinblk/r0.sock` on node `alpha`"),
        "{text}"
    );
    // Exchanged addresses: each belongs to another node already.
    let swapped = second()
        .replace("127.0.0.2", "X")
        .replace("127.0.0.1", "127.0.0.2");
    let text = refusal_of_two(SAMPLE, &swapped.replace('X', "127.0.0.1"));
    assert!(
        text.contains("address `127.0.0.2:7789` is already used by node `bravo`"),
        "{text}"
    );
}

#[test]
fn a_disk_cannot_be_its_own_metadata() {
    let text = refusal(&sample_with("\"internal\"", "\"/srv/alpha/r0.img\""));
    assert!(text.contains("is already used"), "{text}");
}

#[test]
fn one_disk_by_two_paths_is_noticed_on_this_node() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, link) = (dir.path().join("disk"), dir.path().join("link"));
    std::fs::write(&disk, "x").unwrap();
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let first = SAMPLE.replace("/srv/alpha/r0.img", disk.to_str().unwrap());
    let other = second().replace("/srv/alpha/r1.img", link.to_str().unwrap());
    let text = refusal_of_two(&first, &other);
    assert!(text.contains("is the same disk as"), "{text}");
    let files = [("a.toml", first.as_str()), ("b.toml", other.as_str())];
    assert!(load_files(&files, "bravo").is_ok());
}

#[test]
fn an_unknown_node_gets_the_list() {
    let text = load_files(&[("r0.toml", SAMPLE)], "alhpa").unwrap_err();
    assert_eq!(
        text,
        "no resource has a node named `alhpa`\n    did you mean `alpha`? nodes of the \
         configuration: alpha, bravo; choose one with --node NAME"
    );
    let text = load_files(&[("r0.toml", SAMPLE)], "zulu").unwrap_err();
    assert!(!text.contains("did you mean"), "{text}");
}

#[test]
fn without_a_name_the_host_decides() {
    let dir = tempfile::tempdir().unwrap();
    let host = host_name();
    let text = SAMPLE.replace("node.alpha", &format!("node.\"{host}\""));
    std::fs::write(dir.path().join("r0.toml"), text).unwrap();
    assert_eq!(load(dir.path(), None).unwrap().node_name, host);
    std::fs::write(
        dir.path().join("r0.toml"),
        SAMPLE.replace("alpha", "zulu-9"),
    )
    .unwrap();
    let text = load(dir.path(), None).unwrap_err().to_string();
    assert!(
        text.contains(&format!("named like this host, `{host}`")),
        "{text}"
    );
}

#[test]
fn a_long_host_name_finds_its_short_node() {
    let (file, _) = file::read(Path::new("r0.toml"), SAMPLE);
    let files = [file.unwrap()];
    let found = |node, host| node_name(&files, node, host).map_err(|e| e.message);
    assert_eq!(found(None, "alpha.example"), Ok("alpha".to_owned()));
    assert!(found(Some("alpha.example"), "alpha").is_err());
    assert!(found(None, "carol.example").is_err());
}

#[test]
fn resources_of_other_nodes_are_left_out_and_told() {
    let others = second()
        .replace("alpha", "carol")
        .replace("127.0.0.1", "127.0.0.9");
    let config = load_files(&[("a.toml", SAMPLE), ("b.toml", &others)], "alpha").unwrap();
    assert_eq!(config.resources.len(), 1);
    assert!(
        config.warnings[0].contains("takes no part"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn directories_without_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let text = load(dir.path(), Some("alpha")).unwrap_err().to_string();
    assert!(text.contains("there is no *.toml here"), "{text}");
    let text = load(&dir.path().join("none"), Some("alpha"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("cannot be read"), "{text}");
    // What editors leave behind does not count.
    std::fs::write(dir.path().join(".r0.toml"), "= broken").unwrap();
    std::fs::write(dir.path().join("r0.toml~"), "= broken").unwrap();
    std::fs::write(dir.path().join("r0.toml"), SAMPLE).unwrap();
    assert!(load(dir.path(), Some("alpha")).is_ok());
    std::fs::write(dir.path().join("bad.toml"), [0xff, 0xfe]).unwrap();
    assert!(load(dir.path(), Some("alpha")).is_err());
}
