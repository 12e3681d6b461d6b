//! Looking at a volume: listings of any size, searches, checksums, folders as archives.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::process::Daemon;
use crate::volumes::Volume;

#[tokio::test]
async fn a_listing_tells_links_and_kinds_and_a_write_may_ask_for_nothing_to_be_there() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let png = b"\x89PNG\r\n\x1a\n________".to_vec();
    volume.put("picture.txt", png, &[("if-none-match", "*")]).await.is(201);
    let again = volume.put("picture.txt", "x", &[("if-none-match", "*")]).await;
    again.refused(412, "precondition_failed");
    symlink("picture.txt", volume.folder.join("good")).expect("symlink");
    symlink("/etc/passwd", volume.folder.join("bad")).expect("symlink");
    let plain = volume.get("files").await.is(200);
    assert_eq!(plain["files"][2].get("mime"), None, "{plain}");
    let listed = volume.get("files?mime=true").await.is(200);
    let files = &listed["files"];
    let link = |file: &Value| (file["target_inside"].clone(), file["target_type"].clone());
    assert_eq!(link(&files[0]), (json!(false), Value::Null), "{listed}");
    assert_eq!(link(&files[1]), (json!(true), json!("file")), "{listed}");
    assert_eq!(
        (&files[1]["target"], &files[2]["mime"]),
        (&json!("picture.txt"), &json!("image/png"))
    );
    daemon.close().await;
}

/// So many that holding them all would show. `LIGHTD_TEST_ENTRIES` asks for another number.
fn entries() -> u32 {
    std::env::var("LIGHTD_TEST_ENTRIES").map_or(100_000_u32, |text| text.parse().expect("a number"))
}

#[tokio::test]
async fn a_folder_of_very_many_entries_costs_memory_for_one_page() {
    // In memory, so that the disk's noise stays out.
    let memory = tempfile::TempDir::with_prefix_in("lightd-test-", "/dev/shm").expect("a folder");
    let daemon = Daemon::start_with(|config| {
        config["storage"]["volumes_path"] = json!(memory.path());
    })
    .await;
    let volume = Volume::new(&daemon, json!({})).await;
    let (count, folder) = (entries(), volume.folder.join("many"));
    std::fs::create_dir(&folder).expect("mkdir");
    std::fs::create_dir(folder.join("zz-folder")).expect("mkdir");
    for index in 0..count {
        // In no order, as on a disk.
        let name = format!("{:08x}", index.wrapping_mul(2_654_435_761));
        std::fs::File::create(folder.join(name)).expect("a file");
    }
    volume.get("files?path=many&limit=1").await.is(200);
    let before = daemon.peak_memory_kib();
    let begun = Instant::now();
    let first = volume.get("files?path=many&limit=100").await.is(200);
    let page_took = begun.elapsed();
    assert_eq!(first["files"][0]["name"], "zz-folder", "folders first");
    let (mut seen, mut last, mut cursor) = (0, String::new(), String::new());
    let begun = Instant::now();
    loop {
        let page = volume.get(&format!("files?path=many&limit=10000{cursor}")).await.is(200);
        for file in page["files"].as_array().expect("a list") {
            let name = file["name"].as_str().expect("a name");
            assert!(file["type"] == "directory" || name > last.as_str(), "{name} after {last}");
            seen += 1;
            if file["type"] == "file" {
                name.clone_into(&mut last);
            }
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let grown_kib = daemon.peak_memory_kib() - before;
    println!(
        "{count} entries: first 100 in {page_took:?}, all in {:?}, {grown_kib} KiB more at the peak",
        begun.elapsed()
    );
    assert_eq!(seen, count + 1);
    // A page of ten thousand, in a few forms at once.
    assert!(grown_kib < 24 << 10, "{grown_kib} KiB");
    daemon.close().await;
}

#[tokio::test]
async fn files_are_found_by_name_and_content_and_summed() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    for (path, content) in
        [("conf/server.yml", "a: 1\nport: 25565\n"), ("conf/x.txt", "port"), ("world/Port", "x")]
    {
        volume.put(path, content, &[]).await.is(201);
    }
    symlink("/etc", volume.folder.join("etc")).expect("symlink");
    let paths = async |query: &str| {
        let found = volume.get(&format!("search?{query}")).await.is(200);
        let results = found["results"].as_array().expect("a list").clone();
        let path = |hit: &Value| hit["path"].as_str().expect("a path").to_owned();
        let mut paths: Vec<String> = results.iter().map(path).collect();
        paths.sort_unstable();
        (paths, found)
    };
    assert_eq!(paths("q=port").await.0, ["world/Port"]);
    assert_eq!(paths("q=*.yml").await.0, ["conf/server.yml"]);
    assert_eq!(paths("q=passwd").await.0, Vec::<String>::new(), "links are not followed");
    let (found, answer) = paths("content=%5Eport:&path=conf").await;
    assert_eq!(found, ["conf/server.yml"]);
    let place = json!([{"line": 2, "column": 1, "excerpt": "port: 25565"}]);
    assert_eq!((&answer["results"][0]["matches"], &answer["truncated"]), (&place, &json!(false)));
    let (_, few) = paths("content=port&limit=1").await;
    assert_eq!((&few["truncated"], &few["truncated_by"]), (&json!(true), &json!("limit")));
    volume.get("search").await.names_field("?q");
    volume.get("search?q=a&limit=0").await.names_field("?limit");
    volume.get("search?content=(").await.refused(400, "invalid_pattern");
    volume.get("search?q=a&path=etc").await.refused(400, "invalid_path");
    volume.get("search?q=a&path=none").await.refused(404, "not_found");

    let sum = volume.get("checksum?path=conf/x.txt").await.is(200);
    let sha256 = "f8d397a33fcb9725db96501e653bf3cfa4455c5639482b9936c22b221634d659";
    assert_eq!((&sum["checksum"], &sum["size"]), (&json!(sha256), &json!(4)));
    let md5 = volume.get("checksum?path=conf/x.txt&algorithm=MD5").await.is(200);
    assert_eq!(md5["checksum"], "901555fb06e346cb065ceb9808dcfc25");
    volume.get("checksum?path=conf/x.txt&algorithm=rot13").await.names_field("?algorithm");
    volume.get("checksum?path=etc/passwd").await.refused(400, "invalid_path");
    volume.get("checksum?path=conf").await.refused(400, "not_a_file");
    daemon.close().await;
}
