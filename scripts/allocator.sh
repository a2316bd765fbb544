# Sourced by the scripts that run JAX on the CPU: selects the allocator of the commands that follow and prints it.
#
# XLA's CPU client allocates its buffers again in every step. glibc returns them to the kernel each time, which costs a
# page fault per 4 KiB; tcmalloc keeps them (benchmarks/allocators.md). ALLOCATOR=tcmalloc, hugetlb or glibc overrides
# the default, which depends on the machine. A preloaded library or tunable of the caller is not changed.
choose_allocator() {
  local choice=${ALLOCATOR:-} library="" candidate
  if [ -z "$choice" ] && { [ -n "${LD_PRELOAD:-}" ] || [ -n "${GLIBC_TUNABLES:-}" ]; }; then
    echo "allocator: from the environment (LD_PRELOAD=${LD_PRELOAD:-} GLIBC_TUNABLES=${GLIBC_TUNABLES:-})" >&2
    return
  fi
  if [ -z "$choice" ] || [ "$choice" = tcmalloc ]; then
    # awk reads to the end: ldconfig would fail on a closed pipe, and with it a script that sets pipefail.
    for candidate in libtcmalloc_minimal.so.4 libtcmalloc.so.4; do
      library=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | awk -v name="$candidate" '$1 == name && !found++ { print $NF }')
      [ -n "$library" ] && break
    done
  fi
  case ${choice:-${library:+tcmalloc}} in
    tcmalloc)
      if [ -z "$library" ]; then
        echo "allocator: ALLOCATOR=tcmalloc, but libtcmalloc_minimal.so.4 was not found (on Debian: apt-get install" \
          "libtcmalloc-minimal4)" >&2
        return 1
      fi
      export LD_PRELOAD=$library
      # Otherwise tcmalloc prints a message for each large allocation.
      export TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD=${TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD:-1099511627776}
      echo "allocator: tcmalloc ($library)" >&2
      ;;
    hugetlb | "")
      export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
      echo "allocator: glibc with huge pages (GLIBC_TUNABLES=$GLIBC_TUNABLES); tcmalloc is faster" \
        "(on Debian: apt-get install libtcmalloc-minimal4)" >&2
      ;;
    glibc) echo "allocator: glibc" >&2 ;;
    *)
      echo "allocator: got ALLOCATOR=$choice, expected tcmalloc, hugetlb or glibc" >&2
      return 1
      ;;
  esac
}
choose_allocator
