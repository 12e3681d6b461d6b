#!/usr/bin/env bash
# Runs the tests of project quotas in a small virtual machine with Debian's kernel, on ext4 and on XFS. For machines
# whose own kernel has none; not part of test.sh, which needs no virtual machine.
set -euo pipefail
# shellcheck source=install-scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
"") ;;
*)
    say "usage: install-scripts/vm-test.sh"
    say "Needs, from Debian: qemu-system-x86 linux-image-amd64 busybox-static cpio quota e2fsprogs xfsprogs kmod."
    [ "$1" = --help ] && exit 0 || exit 2
    ;;
esac

for program in qemu-system-x86_64 cpio setquota mkfs.ext4 mkfs.xfs modprobe; do
    have "$program" || die "$program is missing." "Its package is one of those that --help names."
done
kernel=$(find /boot -name 'vmlinuz-*-amd64' | sort -V | tail -n 1)
[ -n "$kernel" ] || die "there is no kernel in /boot." "Install linux-image-amd64."
release=${kernel#/boot/vmlinuz-}
busybox=$(command -v busybox) || die "busybox is missing." "Install busybox-static."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,lib,lib64,proc,sys,dev,etc,tmp,mnt,modules}

step "Building the tests"
cd "$repo"
tests=$(cargo rustc --locked --lib --profile test --message-format=json -- --cfg project_quotas |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

# with_libraries PROGRAM AT: copies a program with what it is linked to.
with_libraries() {
    install -D -m 755 "$1" "$root$2"
    local library
    for library in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
        [ -e "$root$library" ] || install -D -m 755 "$library" "$root$library"
    done
}

step "Packing the machine"
with_libraries "$tests" /bin/tests
for program in setquota chattr lsattr; do
    with_libraries "$(command -v "$program")" "$(command -v "$program")"
done
cp "$busybox" "$root/bin/busybox"
for applet in sh mount umount mkdir insmod poweroff cat; do ln -s busybox "$root/bin/$applet"; done
cp "$(command -v dd)" "$root/usr/bin/dd"
with_libraries "$(command -v dd)" /usr/bin/dd
ln -s /proc/mounts "$root/etc/mtab"
printf 'root:x:0:0:root:/:/bin/sh\nuser:x:988:988::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nuser:x:988:\n' >"$root/etc/group"
number=0
for module in virtio_pci virtio_blk ext4 xfs quota_v2; do
    while read -r _ path _; do
        [ -f "$path" ] || continue
        name=$(basename "$path")
        [ -z "$(find "$root/modules" -name "*-$name")" ] || continue
        number=$((number + 1))
        cp "$path" "$root/modules/$(printf %03d $number)-$name"
    done < <(modprobe --ignore-install --show-depends -S "$release" "$module" | grep '^insmod')
done
cat >"$root/init" <<'END'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in /modules/*.ko; do insmod "$module"; done
failed=no
for disk in vda:ext4 vdb:xfs; do
    mkdir /mnt/${disk#*:}
    mount -t ${disk#*:} -o prjquota /dev/${disk%:*} /mnt/${disk#*:} || failed=yes
    echo "== ${disk#*:}"
    LIGHTD_PROJECT_DISK=/mnt/${disk#*:} /bin/tests files::tests::project || failed=yes
done
[ $failed = yes ] || echo ALL-IS-WELL
poweroff -f
END
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$scratch/initrd"
truncate -s 512M "$scratch/ext4" "$scratch/xfs"
mkfs.ext4 -q -F -O project,quota -E quotatype=prjquota "$scratch/ext4"
mkfs.xfs -q -f "$scratch/xfs"

step "Running it"
# Emulated: what these tests do is little, and not every /dev/kvm runs every kernel.
timeout 600 qemu-system-x86_64 -accel "${LIGHTD_VM_ACCEL:-tcg}" -cpu max -m 1024 -smp 2 -nographic -no-reboot \
    -kernel "$kernel" -initrd "$scratch/initrd" -append "console=ttyS0 quiet panic=-1" \
    -drive "file=$scratch/ext4,format=raw,if=virtio" -drive "file=$scratch/xfs,format=raw,if=virtio" \
    </dev/null | tee "$scratch/said"
grep -q ALL-IS-WELL "$scratch/said" || die "the tests in the machine failed."
