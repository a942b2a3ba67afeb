/* Saved state of devices as a surface: what a restore does not refuse must not do harm later. */
#pragma once

#include "device/device.h"

/*
 * Save @dev, change byte @at (modulo its length) by @change, reset, restore, and save
 * again.
 */
void damage_state(const struct device_ops *ops, void *dev, u32 at, u8 change);
