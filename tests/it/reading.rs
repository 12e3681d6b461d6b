//! Looking at a volume: listings of any size, searches, checksums, folders as archives.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::SOON;
use crate::support::process::Daemon;
use crate::support::wait::eventually;
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

#[tokio::test]
async fn a_folder_or_some_of_it_is_downloaded_as_an_archive_of_any_format() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let noise: Vec<u8> = (0..3 << 20).map(|_| rand::random()).collect();
    volume.put("w/region/r.0", noise.clone(), &[]).await.is(201);
    volume.put("w/ü.txt", "text", &[]).await.is(201);
    volume.put("w/left-out", "x", &[]).await.is(201);
    volume.post("folders", json!({"path": "w/empty"})).await.is(201);
    symlink("ü.txt", volume.folder.join("w/link")).expect("symlink");
    symlink("/etc", volume.folder.join("out")).expect("symlink");
    for format in ["zip", "tar", "tar.gz", "tar.bz2", "tar.zst", "tar.xz"] {
        let query = format!(
            "download?path=w&paths=region&paths=%C3%BC.txt&paths=empty&paths=link&format={format}"
        );
        let request = volume.client.request(reqwest::Method::GET, &volume.uri(&query));
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{format}");
        let disposition = response.headers()["content-disposition"].to_str().expect("text");
        assert!(disposition.contains(&format!("filename=\"w.{format}\"")), "{disposition}");
        let archive = response.bytes().await.expect("all of it");
        // Taken apart by lightd; other programs are asked where archives are tested.
        volume.put("archive", archive, &[]).await;
        let unpack = json!({"archive_path": "archive", "destination": format!("out-{format}")});
        volume.post("decompress", unpack).await.is(201);
        let out = format!("out-{format}");
        assert_eq!(volume.names(&out).await, ["empty", "region", "link", "ü.txt"], "{format}");
        let arrived = std::fs::read(volume.folder.join(&out).join("region/r.0")).expect("there");
        assert!(arrived == noise, "{format}");
    }
    let one = volume.get("download?path=w/left-out&format=tar").await;
    assert_eq!((one.status, one.text.len() % 512), (200, 0));
    volume.get("download?path=none").await.refused(404, "not_found");
    volume.get("download?path=w&paths=none").await.refused(404, "not_found");
    volume.get("download?path=out").await.refused(400, "invalid_path");
    volume.get("download?path=w&paths=../x").await.refused(400, "invalid_path");
    volume.get("download?format=rar").await.names_field("?format");
    daemon.close().await;
}

#[tokio::test]
async fn a_download_costs_little_memory_and_ends_with_its_reader() {
    let daemon = Daemon::start().await;
    let volume = Volume::new(&daemon, json!({})).await;
    let file = std::fs::File::create(volume.folder.join("large")).expect("a file");
    file.set_len(400 << 20).expect("a length");
    let before = daemon.peak_memory_kib();
    let request = volume.client.request(reqwest::Method::GET, &volume.uri("download?format=tar"));
    let mut response = request.send().await.expect("an answer");
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.expect("a chunk") {
        bytes += chunk.len();
    }
    let grown_kib = daemon.peak_memory_kib() - before;
    println!("{bytes} bytes, {grown_kib} KiB more at the peak");
    assert!(bytes > 400 << 20 && grown_kib < 32 << 10, "{bytes} bytes, {grown_kib} KiB");
    let staged = || volume.unfinished(&daemon);
    let request = volume.client.request(reqwest::Method::GET, &volume.uri("download?format=tar"));
    let mut leaves = request.send().await.expect("an answer");
    assert!(leaves.chunk().await.expect("a chunk").is_some() && staged() == 1);
    drop(leaves);
    let gone = async || if staged() == 0 { Ok(()) } else { Err(staged()) };
    eventually("the work ends", SOON, gone).await;
    daemon.close().await;
}
