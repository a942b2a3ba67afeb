# doppel: the commands people type. The build itself is Meson's (meson.build).

BUILD  ?= build
GUEST  ?= $(BUILD)/guest
JOBS   ?= $(shell nproc)
MEMORY ?= 512M

.PHONY: all run test test-asan test-tsan test-kvm test-kvm-smp soak stress bench bench-code lint clang fuzz clean

all: $(BUILD)/build.ninja
	@ninja -C $(BUILD) -j$(JOBS)

$(BUILD)/build.ninja:
	@meson setup $(BUILD) >/dev/null 2>&1 || (tools/deps build && meson setup $(BUILD))

# A shell in a virtual machine: Debian's kernel and a small initramfs.
run:
	@tools/deps build run
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@$(BUILD)/doppel run -m $(MEMORY) --kernel $(GUEST)/vmlinuz --initrd $(GUEST)/initramfs \
		--append "console=ttyS0 quiet"

test:
	@tools/deps build run test
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@meson test -C $(BUILD) --print-errorlogs

# The same under AddressSanitizer and UndefinedBehaviorSanitizer, which end a program at the first finding:
# unit tests, conformance guests, fuzz replays, and whole machines (CONTRIBUTING.md says what is left out).
ASAN       ?= $(BUILD)/asan
ASAN_TESTS := cli boot hostile disk net

test-asan:
	@tools/deps build run test
	@[ -e $(ASAN)/build.ninja ] || meson setup $(ASAN) -Db_sanitize=address,undefined -Db_lundef=false >/dev/null
	@ninja -C $(ASAN) -j$(JOBS)
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@export DOPPEL_GUEST=$(abspath $(GUEST)) DOPPEL_PATIENCE=4 \
		ASAN_OPTIONS=detect_leaks=1:halt_on_error=1:abort_on_error=1 \
		UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1; \
	meson test -C $(ASAN) --no-rebuild --print-errorlogs -t 4 --suite unit --suite engine --suite fuzz && \
	meson test -C $(ASAN) --no-rebuild --print-errorlogs -t 4 $(ASAN_TESTS:%=system-%)

# The monitor's own threads under ThreadSanitizer, which ends a program at the first finding (translated code and
# what runs beside it excepted): unit tests, machines with devices at work, boots on several processors.
TSAN       ?= $(BUILD)/tsan
TSAN_TESTS := disk net hostile

test-tsan:
	@tools/deps build run test
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@[ -e $(TSAN)/build.ninja ] || meson setup $(TSAN) -Db_sanitize=thread -Db_lundef=false >/dev/null
	@ninja -C $(TSAN) -j$(JOBS)
	@export DOPPEL_GUEST=$(abspath $(GUEST)) DOPPEL_PATIENCE=5 DOPPEL=$(abspath $(TSAN))/doppel \
		TSAN_OPTIONS=halt_on_error=1:exitcode=66; \
	setarch -R meson test -C $(TSAN) --no-rebuild --print-errorlogs -t 5 --suite unit && \
	setarch -R meson test -C $(TSAN) --no-rebuild --print-errorlogs -t 5 $(TSAN_TESTS:%=system-%) && \
	setarch -R test/system/test_boot.py test_power_off test_several_processors

# Mixed work in a Debian guest for SOAK_SECONDS, every result checked.
soak:
	@tools/deps build run test
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@DOPPEL_BUILD=$(abspath $(BUILD)) DOPPEL_GUEST=$(abspath $(GUEST)) test/system/soak.py $(or $(SOAK_SECONDS),1800)

# stress-ng for STRESS_SECONDS and a parallel build, on four processors.
stress:
	@tools/deps build run test
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@DOPPEL_BUILD=$(abspath $(BUILD)) DOPPEL_GUEST=$(abspath $(GUEST)) test/system/stress.py $(or $(STRESS_SECONDS),600)

# The kvm engine on a processor with SVM, which QEMU emulates: part of make test as well.
test-kvm:
	@tools/deps build run test
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@test/kvm/nested.py --build $(BUILD)

# The same with several processors, which takes ten minutes and is not part of make test.
test-kvm-smp:
	@tools/deps build run test
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@tools/mkinitramfs $(GUEST) $(GUEST)/initramfs
	@test/kvm/nested.py --build $(BUILD) --smp

# DISK=1 adds real programs on the Debian disk, PARALLEL=1 two processors against one; BENCH_ARGS go to bench/run.py as they are.
bench:
	@tools/deps build run bench
	@$(MAKE) --no-print-directory all
	@tools/fetch-kernel $(GUEST)
	@bench/run.py --build $(BUILD) $(if $(DISK),--disk) $(if $(PARALLEL),--parallel) $(BENCH_ARGS)

# Host instructions per guest instruction; REFRESH=1 makes what is printed the table that make test compares with.
bench-code:
	@tools/deps build test
	@$(MAKE) --no-print-directory all
	@$(BUILD)/bench/code $(if $(REFRESH),>bench/code.txt && git --no-pager diff --stat bench/code.txt)

lint: clang
	@tools/deps build lint
	@$(MAKE) --no-print-directory all
	@tools/lint $(BUILD)

# Both compilers take the whole tree without a warning: "all" proves it for gcc, this for clang.
clang:
	@tools/deps build test lint
	@[ -e $(BUILD)/clang/build.ninja ] || CC=clang meson setup $(BUILD)/clang >/dev/null
	@ninja -C $(BUILD)/clang -j$(JOBS)

# Random instructions with a seed of the day's, then every libFuzzer target; FUZZ_SECONDS bounds each.
fuzz:
	@tools/deps build test fuzz
	@$(MAKE) --no-print-directory all
	@echo "fuzz: instructions for $(or $(FUZZ_SECONDS),60) s"
	@$(BUILD)/test/diff/diff --time $(or $(FUZZ_SECONDS),60)
	@CC=clang meson setup $(BUILD)/fuzz -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false \
		>/dev/null 2>&1 || true
	@ninja -C $(BUILD)/fuzz -j$(JOBS)
	@tools/fuzz $(BUILD)/fuzz

clean:
	@rm -rf $(BUILD)
